package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mootkube/moot/testbed/leak"
)

// buildWeb makes the image of the web app from source.
func buildWeb(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "web"), "./web")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build web: %v: %s", err, out)
	}
	file := filepath.Join(dir, "web.tar")
	if err := BuildImage(ImageSpec{Name: name, Binary: filepath.Join(dir, "web"), Links: []string{"bin/tar"}}, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// A registry takes a push and is reached from a node by its name, with its
// CA and password alone.
func TestRegistry(t *testing.T) {
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	c := up(t, 1, nil)
	r, err := c.RegistryUp(t.Context(), "main")
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.RegistryUp(t.Context(), "main")
	if err != nil || again != r {
		t.Errorf("second up: %v, %v", again, err)
	}
	mirror, err := c.RegistryUp(t.Context(), "mirror")
	if err != nil || mirror.Address == r.Address || mirror.Password == r.Password {
		t.Errorf("mirror: %v, %v", mirror, err)
	}
	ref, err := c.RegistryPush(t.Context(), "main", buildWeb(t, "example.com/web:v1"), "shop/web:v2")
	if err != nil || ref != "registry.testbed:5000/shop/web:v2" {
		t.Fatalf("push: %q, %v", ref, err)
	}
	ca, err := os.ReadFile(r.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	mustOn(t, c, "n1", fmt.Sprintf("cat >/tmp/ca.crt <<'END'\n%sEND", ca))
	tags := "https://registry.testbed:5000/v2/shop/web/tags/list"
	if got := mustOn(t, c, "n1", fmt.Sprintf("curl -sS --cacert /tmp/ca.crt -u %s:%s %s", r.Username, r.Password, tags)); !strings.Contains(got, `"v2"`) {
		t.Errorf("tags: %s", got)
	}
	if got := mustOn(t, c, "n1", "curl -s -o /dev/null -w '%{http_code}' --cacert /tmp/ca.crt "+tags); got != "401" {
		t.Errorf("without a password: %s", got)
	}
	if got, code := on(t, c, "n1", "curl -sS "+tags); code == 0 {
		t.Errorf("without the CA: %s", got)
	}
	if log := tail(r.Log, 100); !strings.Contains(log, "/v2/shop/web/manifests/v2") {
		t.Errorf("the registry's log has no push:\n%s", log)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	if l := after.Since(before); len(l) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
	}
}

func TestBuildImageRefusesDynamic(t *testing.T) {
	err := BuildImage(ImageSpec{Name: "example.com/sh:v1", Binary: "/bin/sh"}, filepath.Join(t.TempDir(), "x.tar"))
	if err == nil || !strings.Contains(err.Error(), "static") {
		t.Errorf("image of a dynamic binary: %v", err)
	}
}
