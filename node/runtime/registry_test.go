package runtime

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/google/go-containerregistry/pkg/authn"
)

// TestPullFromRegistry pulls over TLS with a password, directly and for
// another registry's name through a mirror.
func TestPullFromRegistry(t *testing.T) {
	n := inside(t)
	if n == nil {
		return
	}
	ctx := t.Context()
	const user, password = "reader", "s3cret"
	var refused atomic.Int32
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			refused.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")

	ref, err := name.NewTag(host + "/team/app:2")
	must(t, err)
	must(t, remote.Write(ref, appImage(t),
		remote.WithTransport(srv.Client().Transport),
		remote.WithAuth(&authn.Basic{Username: user, Password: password})))

	writeHosts(t, n, host, srv)
	writeHosts(t, n, "registry.example.com", srv)
	n.start()
	c := n.cri()
	pull := func(image, password string) (string, error) {
		resp, err := c.images.PullImage(ctx, &cri.PullImageRequest{
			Image: &cri.ImageSpec{Image: image},
			Auth:  &cri.AuthConfig{Username: user, Password: password},
		})
		return resp.GetImageRef(), err
	}
	if _, err := pull(ref.String(), "wrong"); err == nil {
		t.Error("pulled with a wrong password")
	}
	if refused.Load() == 0 {
		t.Error("the registry was not asked")
	}
	direct, err := pull(ref.String(), password)
	must(t, err)
	mirrored, err := pull("registry.example.com/team/app:2", password)
	must(t, err)
	if direct == "" || direct != mirrored {
		t.Errorf("pulled %q directly, %q through the mirror", direct, mirrored)
	}

	pod := n.runPod(ctx, "pulled")
	id, _ := pod.run(ctx, ref.String(), "server")
	n.say(ctx, id, "from a registry")
	pod.remove(ctx)
	wantClean(t, n)
}

// writeHosts sends what is asked of a registry to the test server, and trusts
// its certificate.
func writeHosts(t *testing.T, n *testNode, registryName string, srv *httptest.Server) {
	t.Helper()
	dir := filepath.Join(n.cfg.RegistryDirs[0], registryName)
	must(t, os.MkdirAll(dir, 0o755))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600))
	hosts := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n", srv.URL, filepath.Join(dir, "ca.crt"))
	must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600))
}
