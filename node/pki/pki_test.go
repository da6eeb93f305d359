package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func testParams() Params {
	return Params{
		NodeName:      "n1",
		NodeIPs:       []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		ServiceIP:     netip.MustParseAddr("10.43.0.1"),
		ClusterDomain: "cluster.local",
		ExtraSANs:     []string{"api.example.org", "198.51.100.9", "n1"},
		APIPort:       6443,
	}
}

func testTime() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }

func ensure(t *testing.T, dir string, p Params, now time.Time) *Bundle {
	t.Helper()
	b, err := Ensure(dir, p, now)
	if err != nil {
		t.Fatalf("Ensure: %v", err)
	}
	return b
}

func readCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := decodeCert(data)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func verify(t *testing.T, cert *x509.Certificate, caPath, name string, usage x509.ExtKeyUsage, now time.Time) error {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(readCert(t, caPath))
	_, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestServingCertificatesCoverEveryName(t *testing.T) {
	b := ensure(t, t.TempDir(), testParams(), testTime())
	api := readCert(t, b.APIServer.Cert)
	for _, name := range []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"n1", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.7", "2001:db8::7", "api.example.org", "198.51.100.9",
	} {
		if err := verify(t, api, b.CA.Cert, name, x509.ExtKeyUsageServerAuth, testTime()); err != nil {
			t.Errorf("API server as %s: %v", name, err)
		}
	}
	if err := verify(t, api, b.CA.Cert, "other.example.org", x509.ExtKeyUsageServerAuth, testTime()); err == nil {
		t.Error("API server's certificate holds for a name it was not given")
	}
	if err := verify(t, api, b.CA.Cert, "", x509.ExtKeyUsageClientAuth, testTime()); err == nil {
		t.Error("API server's serving certificate is good as a client's")
	}
	kubelet := readCert(t, b.KubeletServing.Cert)
	for _, name := range []string{"n1", "192.0.2.7", "2001:db8::7"} {
		if err := verify(t, kubelet, b.CA.Cert, name, x509.ExtKeyUsageServerAuth, testTime()); err != nil {
			t.Errorf("kubelet as %s: %v", name, err)
		}
	}
	if err := verify(t, readCert(t, b.FrontProxyClient.Cert), b.CA.Cert, "", x509.ExtKeyUsageClientAuth, testTime()); err == nil {
		t.Error("the front proxy's certificate is good as a cluster client's")
	}
	for _, pair := range []Pair{b.APIServer, b.KubeletServing, b.KubeletClient, b.FrontProxyClient} {
		if _, err := tls.LoadX509KeyPair(pair.Cert, pair.Key); err != nil {
			t.Errorf("load %s: %v", pair.Cert, err)
		}
	}
}

func TestClientIdentities(t *testing.T) {
	p := testParams()
	b := ensure(t, t.TempDir(), p, testTime())
	tests := []struct{ path, user, group string }{
		{b.Admin, "moot:admin", "system:masters"},
		{b.Kubelet, "system:node:n1", "system:nodes"},
		{b.ControllerManager, "system:kube-controller-manager", ""},
		{b.Scheduler, "system:kube-scheduler", ""},
		{b.Leader, "moot:leader", "moot:leader"},
		{b.Proxy, "system:kube-proxy", ""},
		{b.DNS, "moot:dns:n1", "moot:dns"},
		{b.Volume, "moot:local-path:n1", "moot:local-path"},
	}
	for _, tt := range tests {
		config, err := clientcmd.BuildConfigFromFlags("", tt.path)
		if err != nil {
			t.Fatalf("%s: %v", tt.path, err)
		}
		if config.Host != "https://127.0.0.1:6443" {
			t.Errorf("%s: server %s", tt.path, config.Host)
		}
		cert, err := decodeCert(config.CertData)
		if err != nil {
			t.Fatalf("%s: %v", tt.path, err)
		}
		if got := strings.Join(cert.Subject.Organization, ","); cert.Subject.CommonName != tt.user || got != tt.group {
			t.Errorf("%s: user %q groups %q, want %q %q", tt.path, cert.Subject.CommonName, got, tt.user, tt.group)
		}
		if err := verify(t, cert, b.CA.Cert, "", x509.ExtKeyUsageClientAuth, testTime()); err != nil {
			t.Errorf("%s: %v", tt.path, err)
		}
	}
}

func TestEnsureAgainChangesNothing(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, testParams(), testTime())
	before := snapshot(t, dir)
	b := ensure(t, dir, testParams(), testTime().Add(24*time.Hour))
	if len(b.Issued) != 0 {
		t.Errorf("issued again: %v", b.Issued)
	}
	compare(t, before, snapshot(t, dir))
}

func TestReissue(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Params) time.Duration
		file   string
		why    string
	}{
		{"address", func(p *Params) time.Duration { p.NodeIPs = p.NodeIPs[:1]; return 0 }, "kubelet-serving.crt", "names or addresses changed"},
		{"extra name", func(p *Params) time.Duration { p.ExtraSANs = nil; return 0 }, "apiserver.crt", "names or addresses changed"},
		{"node name", func(p *Params) time.Duration { p.NodeName = "n2"; return 0 }, "kubelet.kubeconfig", "other identity"},
		{"port", func(p *Params) time.Duration { p.APIPort = 7443; return 0 }, "scheduler.kubeconfig", "API server or authority changed"},
		{"expires soon", func(*Params) time.Duration { return leafLife - renewBefore + time.Hour }, "apiserver.crt", "expires soon"},
		{"expired", func(*Params) time.Duration { return leafLife + time.Hour }, "proxy.kubeconfig", "expired"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, p := t.TempDir(), testParams()
			first := ensure(t, dir, p, testTime())
			ca := readCert(t, first.CA.Cert)
			now := testTime().Add(tt.change(&p))
			second := ensure(t, dir, p, now)
			found := false
			for _, issued := range second.Issued {
				found = found || issued == Issued{File: tt.file, Why: tt.why}
			}
			if !found {
				t.Errorf("issued %v, want %s because %s", second.Issued, tt.file, tt.why)
			}
			if !ca.Equal(readCert(t, second.CA.Cert)) {
				t.Error("the authority changed")
			}
			if third := ensure(t, dir, p, now); len(third.Issued) != 0 {
				t.Errorf("issued once more: %v", third.Issued)
			}
		})
	}
}

// A certificate never outlives its authority, and does not renew for ever when
// the authority is what ends.
func TestAuthorityEnds(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, testParams(), testTime())
	late := testTime().Add(authorityLife - 24*time.Hour)
	b := ensure(t, dir, testParams(), late)
	if api, ca := readCert(t, b.APIServer.Cert), readCert(t, b.CA.Cert); api.NotAfter.After(ca.NotAfter) {
		t.Errorf("certificate ends %s, after its authority", api.NotAfter)
	}
	if b = ensure(t, dir, testParams(), late); len(b.Issued) != 0 {
		t.Errorf("issued again: %v", b.Issued)
	}
	wantError(t, dir, testTime().Add(authorityLife+time.Hour), "expired", "check the clock")
	wantError(t, dir, testTime().Add(-authorityLife/10), "set the clock")
	wantError(t, t.TempDir(), time.Unix(0, 0), "set it first")
}

func TestEveryInterruptionIsCompleted(t *testing.T) {
	order := []string{
		"ca.key", "ca.crt", "front-proxy-ca.key", "front-proxy-ca.crt", "service-account.key", "service-account.pub",
		"peers.pem", "peer.key", "peer.crt",
		"apiserver.key", "apiserver.crt", "kubelet-serving.key", "kubelet-serving.crt",
		"apiserver-kubelet-client.key", "apiserver-kubelet-client.crt", "front-proxy-client.key", "front-proxy-client.crt",
		"kubelet.kubeconfig", "controller-manager.kubeconfig", "scheduler.kubeconfig", "leader.kubeconfig",
		"proxy.kubeconfig", "dns.kubeconfig", "volume.kubeconfig", "admin.kubeconfig",
	}
	whole := t.TempDir()
	ensure(t, whole, testParams(), testTime())
	all := snapshot(t, whole)
	if len(all) != len(order) {
		t.Fatalf("%d files, the test knows %d", len(all), len(order))
	}
	for n := range order {
		t.Run(fmt.Sprintf("after %d files", n), func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range order[:n] {
				put(t, filepath.Join(dir, name), all[name])
			}
			put(t, filepath.Join(dir, order[n]+unfinished), all[order[n]][:10])
			ensure(t, dir, testParams(), testTime())
			after := snapshot(t, dir)
			for _, name := range order[:n] {
				// A key whose certificate was never written is replaced with it.
				pairCut := n > 7 && n < 17 && name == order[n-1] && strings.HasSuffix(name, ".key")
				if !bytes.Equal(after[name], all[name]) && !pairCut {
					t.Errorf("%s was replaced", name)
				}
			}
			if len(after) != len(order) {
				t.Errorf("%d files, want %d", len(after), len(order))
			}
		})
	}
}

func TestDamage(t *testing.T) {
	// What others depend on is never replaced: an error that says what to do.
	for _, name := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "service-account.key", "peers.pem"} {
		dir := t.TempDir()
		ensure(t, dir, testParams(), testTime())
		put(t, filepath.Join(dir, name), []byte("garbage"))
		before := snapshot(t, dir)
		wantError(t, dir, testTime(), name[:strings.Index(name, ".")], "restore")
		compare(t, before, snapshot(t, dir))
	}
	for _, name := range []string{"ca.key", "front-proxy-ca.key", "service-account.key", "peers.pem"} {
		dir := t.TempDir()
		ensure(t, dir, testParams(), testTime())
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		wantError(t, dir, testTime(), name, "missing", "restore")
	}
	// What is this node's alone is issued again.
	for _, name := range []string{"apiserver.crt", "apiserver.key", "kubelet.kubeconfig", "service-account.pub", "front-proxy-client.key", "peer.crt"} {
		dir := t.TempDir()
		ensure(t, dir, testParams(), testTime())
		put(t, filepath.Join(dir, name), []byte("garbage"))
		ensure(t, dir, testParams(), testTime())
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) == "garbage" {
			t.Errorf("%s was not issued again: %v", name, err)
		}
	}
}

func TestOnlyTheOwnerReads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, dir, testParams(), testTime())
	if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ensure(t, dir, testParams(), testTime())
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportMakesAMember(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	ensure(t, first, testParams(), testTime())
	m, err := Export(first)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", m, m, m, m); strings.Contains(text, "PRIVATE") || !strings.Contains(text, "hidden") {
		t.Errorf("material prints its keys: %.40s", text)
	}
	if err := Import(second, m); err != nil {
		t.Fatal(err)
	}
	p := testParams()
	p.NodeName, p.NodeIPs = "n2", []netip.Addr{netip.MustParseAddr("192.0.2.8")}
	b := ensure(t, second, p, testTime())
	if err := verify(t, readCert(t, b.APIServer.Cert), filepath.Join(first, "ca.crt"), "n2", x509.ExtKeyUsageServerAuth, testTime()); err != nil {
		t.Errorf("the first member does not trust the second: %v", err)
	}
	again, err := Export(second)
	if err != nil || !bytes.Equal(again.ServiceAccountKey, m.ServiceAccountKey) {
		t.Errorf("service account keys differ: %v", err)
	}
	if err := Import(second, m); err != nil {
		t.Errorf("import of the same again: %v", err)
	}
	third := t.TempDir()
	ensure(t, third, testParams(), testTime())
	before := snapshot(t, third)
	if err := Import(third, m); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("import over another cluster: %v", err)
	}
	compare(t, before, snapshot(t, third))
}

func TestInterruptedImport(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	ensure(t, first, testParams(), testTime())
	m, err := Export(first)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(second, joiningFile), nil)
	put(t, filepath.Join(second, "ca.key"), m.CAKey)
	wantError(t, second, testTime(), "join again")
	if err := Import(second, m); err != nil {
		t.Fatal(err)
	}
	ensure(t, second, testParams(), testTime())
	compare(t, map[string][]byte{"ca.crt": m.CACert}, map[string][]byte{"ca.crt": snapshot(t, second)["ca.crt"]})
	bad := m
	bad.CAKey = m.FrontProxyKey
	if err := Import(t.TempDir(), bad); !errors.Is(err, errKeyMismatch) {
		t.Errorf("import of mismatched material: %v", err)
	}
}

func TestParamsValidate(t *testing.T) {
	good := testParams()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Params){
		"node name": func(p *Params) { p.NodeName = "" },
		"address":   func(p *Params) { p.NodeIPs = nil },
		"service":   func(p *Params) { p.ServiceIP = netip.Addr{} },
		"domain":    func(p *Params) { p.ClusterDomain = "" },
		"port":      func(p *Params) { p.APIPort = 0 },
		"extra":     func(p *Params) { p.ExtraSANs = []string{""} },
	} {
		p := testParams()
		spoil(&p)
		if p.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func wantError(t *testing.T, dir string, now time.Time, parts ...string) {
	t.Helper()
	_, err := Ensure(dir, testParams(), now)
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not mention %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %q", err)
	}
}

func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func compare(t *testing.T, before, after map[string][]byte) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
	for name, data := range before {
		if !bytes.Equal(data, after[name]) {
			t.Errorf("%s changed", name)
		}
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
