package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait. On a starved machine things take long; a test
// that needs all of it has failed.
const patience = 3 * time.Minute

func suiteDir() string { return os.Getenv("MOOT_E2E_DIR") }

// testbed runs bin/testbed on the shared cluster and fails the test if it
// fails.
func runBed(t *testing.T, args ...string) string {
	t.Helper()
	out, err := bed(t.Context(), suiteDir(), "", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// tryOn runs a command on the node.
func tryOn(ctx context.Context, stdin string, argv ...string) (string, error) {
	out, err := bed(ctx, suiteDir(), stdin, append([]string{"exec", node, "--"}, argv...)...)
	out = strings.TrimSpace(out)
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, out)
	}
	return out, nil
}

// shell runs a shell line on the node.
func shell(t *testing.T, line string) string {
	t.Helper()
	out, err := tryOn(t.Context(), "", "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// exitStatus is the status behind an error of tryOn.
func exitStatus(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// space is a namespace of a test's own.
type space struct {
	*testing.T
	name string
}

// newSpace creates a namespace for the test, to be deleted after it; when
// the test has failed, what was in it is printed first.
func newSpace(t *testing.T) *space {
	t.Helper()
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "-")
	// The number sets a second run of the test apart, as long as it is short.
	name = fmt.Sprintf("%s-%d", strings.TrimPrefix(name, "test"), time.Now().UnixMilli()%1e6)
	s := &space{T: t, name: name}
	s.must("", "kubectl", "create", "namespace", s.name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			for _, args := range [][]string{
				{"get", "all,endpointslices,pvc,events", "-o", "wide"}, {"describe", "pods"},
			} {
				out, _ := tryOn(ctx, "", append([]string{"kubectl", "-n", s.name}, args...)...)
				t.Log(out)
			}
		}
		if out, err := tryOn(ctx, "", "kubectl", "delete", "namespace", s.name, "--wait=false"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	// Pods are refused until the controller has made the account.
	s.eventually("the default service account", func() error {
		_, err := s.try("", "get", "serviceaccount", "default")
		return err
	})
	return s
}

func (s *space) try(stdin string, args ...string) (string, error) {
	return tryOn(s.Context(), stdin, append([]string{"kubectl", "-n", s.name}, args...)...)
}

func (s *space) must(stdin string, argv ...string) string {
	s.Helper()
	out, err := tryOn(s.Context(), stdin, argv...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// kubectl runs kubectl in the test's namespace and fails the test if it
// fails.
func (s *space) kubectl(args ...string) string {
	s.Helper()
	return s.must("", append([]string{"kubectl", "-n", s.name}, args...)...)
}

// apply applies a manifest in which $IMAGE and $NS are filled in.
func (s *space) apply(manifest string) {
	s.Helper()
	s.must(s.fill(manifest), "kubectl", "-n", s.name, "apply", "-f", "-")
}

func (s *space) fill(manifest string) string {
	return strings.NewReplacer("$IMAGE2", image2, "$IMAGE", image, "$NS", s.name).Replace(manifest)
}

// wait blocks in kubectl wait.
func (s *space) wait(condition string, what ...string) {
	s.Helper()
	s.kubectl(append([]string{"wait", "--for=" + condition, fmt.Sprintf("--timeout=%s", patience)}, what...)...)
}

// rollout waits for a Deployment, StatefulSet or DaemonSet.
func (s *space) rollout(what string) {
	s.Helper()
	s.kubectl("rollout", "status", what, fmt.Sprintf("--timeout=%s", patience))
}

// field reads one field of an object by JSONPath.
func (s *space) field(what, path string) string {
	s.Helper()
	return s.kubectl("get", what, "-o", "jsonpath={"+path+"}")
}

// eventually tries until there is no error.
func (s *space) eventually(what string, try func() error) {
	s.Helper()
	eventually(s.T, what, try)
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// curl asks a URL from the node.
func curl(ctx context.Context, url string, args ...string) (string, error) {
	return tryOn(ctx, "", append([]string{"curl", "-sSf", "--max-time", "5", url}, args...)...)
}

// answers waits until a URL, asked from the node, answers with text in it.
func (s *space) answers(url, text string) {
	s.Helper()
	s.eventually(url, func() error {
		out, err := curl(s.Context(), url)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("answers %q, not %q", out, text)
		}
		return err
	})
}

func contains(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: %q is not in:\n%s", what, w, got)
		}
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
