package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/testbed"
)

// An image pushed to a registry with TLS and a password is pulled and runs;
// with a wrong password, or none, it is not; a mirror is asked first.
func TestPullFromRegistry(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	reg := decode[testbed.Registry](t, runBed(t, "registry", "up"))
	// Of this run alone: no node has it yet.
	tag := fmt.Sprint(time.Now().UnixNano())
	ref := s.push("registry", "shop/app:"+tag, "pulled")
	s.trust(reg.Host, reg, reg.Host, "")

	const pull = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [{name: %s}]
  containers: [{name: web, image: "%s", imagePullPolicy: %s, args: [sleep, "3600"]}]
`
	secret := func(name, password string) {
		s.kubectl("create", "secret", "docker-registry", name, "--docker-server="+reg.Host,
			"--docker-username="+reg.Username, "--docker-password="+password)
	}
	secret("wrong", "not the password")
	secret("right", reg.Password)
	reason := func(pod, want string) {
		t.Helper()
		s.eventually(pod+" waits", func() error {
			got := s.field("pod/"+pod, ".status.containerStatuses[0].state.waiting.reason")
			if !strings.Contains(want, got) || got == "" {
				return fmt.Errorf("reason %q", got)
			}
			return nil
		})
	}
	s.apply(fmt.Sprintf(pull, "never", "right", ref, "Never"))
	reason("never", "ErrImageNeverPull")
	s.apply(fmt.Sprintf(pull, "wrong", "wrong", ref, "Always"))
	reason("wrong", "ErrImagePull ImagePullBackOff")
	s.apply(fmt.Sprintf(pull, "right", "right", ref, "IfNotPresent"))
	s.wait("condition=Ready", "pod/right")
	contains(t, "the image", s.field("pod/right", ".status.containerStatuses[0].imageID"), "sha256:")
	contains(t, "images on the node", shell(t, "moot image ls"), "registry.testbed:5000/shop/app")
	contains(t, "the registry's log", readFile(t, reg.Log), "GET /v2/shop/app/manifests/")

	// A mirror for a registry that cannot be reached at all.
	mirror := decode[testbed.Registry](t, runBed(t, "registry", "up", "--name", "mirror"))
	s.push("mirror", "far/app:"+tag, "mirrored")
	s.trust("far.example.com", mirror, mirror.Host, "Basic "+basic(mirror))
	s.apply(fmt.Sprintf(pull, "mirrored", "right", "far.example.com/far/app:"+tag, "Always"))
	s.wait("condition=Ready", "pod/mirrored")
	contains(t, "the mirror's log", readFile(t, mirror.Log), "GET /v2/far/app/manifests/")
}

// push makes an image that no other test has and pushes it.
func (s *space) push(registry, repository, user string) string {
	s.Helper()
	tar := filepath.Join(s.TempDir(), user+".tar")
	runBed(s.T, "image", "build", "--name", "moot.example/"+user+":v1", "--path", "/"+user, binary("testbed-web"), tar)
	return strings.TrimSpace(runBed(s.T, "registry", "push", "--name", registry, tar, repository))
}

// trust writes what containerd reads about a registry: where to go for it,
// by whose certificates.
func (s *space) trust(name string, r testbed.Registry, host, authorization string) {
	s.Helper()
	dir := "/etc/moot/certs.d/" + name
	hosts := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n",
		"https://"+name, "https://"+host, dir+"/ca.crt")
	if authorization != "" {
		hosts += fmt.Sprintf("  [host.%q.header]\n    Authorization = %q\n", "https://"+host, authorization)
	}
	s.must(readFile(s.T, r.CAFile), "sh", "-c", "mkdir -p '"+dir+"' && cat >'"+dir+"/ca.crt'")
	s.must(hosts, "sh", "-c", "cat >'"+dir+"/hosts.toml'")
}

func basic(r testbed.Registry) string {
	return base64.StdEncoding.EncodeToString([]byte(r.Username + ":" + r.Password))
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
