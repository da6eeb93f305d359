package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: $IMAGE
    env: [{name: MESSAGE, value: "good day"}]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
  - name: reader
    image: $IMAGE
    args: [read]
    stdin: true
    stdinOnce: false
  volumes: [{name: scratch, emptyDir: {}}]
`

func TestLogsExecAttachCopy(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(pod)
	s.wait("condition=Ready", "pod/web")

	contains(t, "logs", s.kubectl("logs", "web", "-c", "web"), "web: serving on :8080")

	equal(t, "exec", s.kubectl("exec", "web", "-c", "web", "--", "/web", "echo", "out"), "out")
	_, err := s.try("", "exec", "web", "-c", "web", "--", "/web", "exit", "42")
	equal(t, "exit status of exec", exitStatus(err), 42)
	got := s.must("a line\n", "kubectl", "-n", s.name, "exec", "-i", "web", "-c", "web", "--", "/web", "read")
	equal(t, "exec with input", got, "got a line")

	// Attach has the container's own input; what it prints is in the log.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := tryOn(ctx, "attached\n", "timeout", "20", "kubectl", "-n", s.name, "attach", "-i", "web", "-c", "reader"); err != nil && exitStatus(err) != 124 {
		t.Errorf("attach: %v: %s", err, out)
	}
	s.eventually("the reader has it", func() error {
		if out := s.kubectl("logs", "web", "-c", "reader"); !strings.Contains(out, "got attached") {
			return fmt.Errorf("log: %q", out)
		}
		return nil
	})

	shell(t, "mkdir -p /tmp/cp/dir && echo one >/tmp/cp/dir/1 && head -c 3000000 /dev/urandom >/tmp/cp/dir/2")
	s.kubectl("cp", "-c", "web", "/tmp/cp/dir", "web:/scratch/dir")
	s.kubectl("cp", "-c", "web", "web:/scratch/dir", "/tmp/cp/back")
	shell(t, "cd /tmp/cp && cmp dir/1 back/1 && cmp dir/2 back/2 && rm -r /tmp/cp")
}

// A followed log shows a line that is written after the following began.
func TestFollowLogs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(pod)
	s.wait("condition=Ready", "pod/web")
	lines := s.follow("kubectl", "-n", s.name, "logs", "-f", "web", "-c", "web")
	s.line(lines, "web: serving on")
	ip := s.field("pod/web", ".status.podIP")
	// The connection ends with the process.
	_, _ = curl(t.Context(), "http://"+ip+":8080/exit?s=7")
	s.line(lines, "web: asked to exit with 7")
	s.eventually("the container is back", func() error {
		if n := s.field("pod/web", `.status.containerStatuses[?(@.name=="web")].restartCount`); n != "1" {
			return fmt.Errorf("restarts: %s", n)
		}
		return nil
	})
	contains(t, "the log before", s.kubectl("logs", "-p", "web", "-c", "web"), "asked to exit with 7")
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(pod)
	s.wait("condition=Ready", "pod/web")
	lines := s.follow("kubectl", "-n", s.name, "port-forward", "pod/web", "18080:8080")
	s.line(lines, "Forwarding from 127.0.0.1:18080")
	for range 3 {
		s.answers("http://127.0.0.1:18080/", "good day from web")
	}
}

// follow runs a command on the node until the test ends and returns its
// lines.
func (s *space) follow(argv ...string) <-chan string {
	s.Helper()
	cmd := exec.CommandContext(s.Context(), binary("testbed"),
		append([]string{"--dir", filepath.Join(suiteDir(), "bed"), "exec", node, "--"}, argv...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	lines := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			select {
			case lines <- in.Text():
			default: // nobody reads any more
			}
		}
	}()
	s.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		<-done
		_ = cmd.Wait()
	})
	return lines
}

// line waits for a line with text in it.
func (s *space) line(lines <-chan string, text string) {
	s.Helper()
	deadline := time.After(patience)
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				s.Fatalf("the output ended without %q", text)
			}
			if strings.Contains(l, text) {
				return
			}
		case <-deadline:
			s.Fatalf("no line %q within %s", text, patience)
		}
	}
}
