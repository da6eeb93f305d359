package api

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mootkube/moot/node/pki"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

func testConfig(args ...string) Config {
	cfg := DefaultConfig()
	cfg.EtcdSocket, cfg.NodeIP, cfg.PKI, cfg.Args = "/run/x/etcd.sock", netip.MustParseAddr("192.0.2.1"), &pki.Bundle{}, args
	return cfg
}

func TestArgs(t *testing.T) {
	cfg := testConfig("--event-ttl=2h", "profiling", "max_requests_inflight=77", "enable-admission-plugins=AlwaysPullImages", "default-unreachable-toleration-seconds=9")
	opts := options.NewServerRunOptions()
	if err := cfg.parse(opts); err != nil {
		t.Fatal(err)
	}
	if opts.EventTTL.Hours() != 2 || !opts.Features.EnableProfiling || opts.GenericServerRunOptions.MaxRequestsInFlight != 77 {
		t.Error("user's flags are lost")
	}
	if got := strings.Join(opts.Admission.GenericAdmission.EnablePlugins, ","); got != "NodeRestriction,AlwaysPullImages" {
		t.Errorf("admission plugins %s", got)
	}
	if got := strings.Join(opts.Authorization.Modes, ","); got != "Node,RBAC" {
		t.Errorf("authorization modes %s", got)
	}
	if opts.Etcd.StorageConfig.Transport.ServerList[0] != "unix:///run/x/etcd.sock" || opts.Etcd.DefaultStorageMediaType != "application/json" || !opts.AllowPrivileged || !opts.EnableAggregatorRouting {
		t.Error("the daemon's flags are lost")
	}
}

func TestArgsRefused(t *testing.T) {
	for arg, want := range map[string]string{
		"no-such-flag=1":                  "no such flag",
		"audit-log":                       "did you mean",
		"encryption-provider-config=/x":   "cannot be merged",
		"storage-media-type=application/": "cannot be merged",
		"etcd_servers=http://x":           "the daemon is the store",
		"secure-port=1":                   "--api-port",
		"v=9":                             "own log",
		"event-ttl=soon":                  "invalid",
	} {
		cfg := testConfig(arg)
		err := cfg.parse(options.NewServerRunOptions())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--apiserver-arg") {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
	}
	cfg := testConfig("a-b-c=1", "x-y-z=2")
	if err := cfg.parse(options.NewServerRunOptions()); err == nil || strings.Count(err.Error(), "no such flag") != 2 {
		t.Errorf("two unknown flags: %v", err)
	}
}

// Feature gates are the process's, so that this test has one of its own.
func TestCBORIsRefused(t *testing.T) {
	const inside = "MOOT_TEST_CBOR"
	if os.Getenv(inside) != "" {
		if _, err := New(testConfig("feature-gates=CBORServingAndStorage=true")); err == nil || !strings.Contains(err.Error(), "CBOR") {
			t.Fatalf("New: %v", err)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCBORIsRefused$")
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestConfigValidate(t *testing.T) {
	good := testConfig()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"socket":     func(c *Config) { c.EtcdSocket = "etcd.sock" },
		"address":    func(c *Config) { c.NodeIP = netip.Addr{} },
		"port":       func(c *Config) { c.Port = 70000 },
		"keys":       func(c *Config) { c.PKI = nil },
		"toleration": func(c *Config) { c.Toleration = -1 },
		"domain":     func(c *Config) { c.ClusterDomain = "" },
	} {
		cfg := testConfig()
		spoil(&cfg)
		if cfg.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
