package kubelet

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.NodeName = "n1"
	cfg.NodeIPs = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	cfg.RootDir, cfg.PodLogsDir = filepath.Join(dir, "kubelet"), filepath.Join(dir, "logs")
	cfg.RuntimeSocket = "/run/moot/containerd.sock"
	cfg.Kubeconfig, cfg.ClientCA = filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "ca.crt")
	cfg.ServingCert, cfg.ServingKey = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	cfg.ClusterDNS = []netip.Addr{netip.MustParseAddr("10.43.0.10")}
	cfg.Log = slog.New(slog.DiscardHandler)
	return cfg
}

func TestServerSettings(t *testing.T) {
	cfg := testConfig(t)
	s, err := newServer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"anonymous callers":      !s.Authentication.Anonymous.Enabled,
		"tokens are reviewed":    s.Authentication.Webhook.Enabled,
		"authorization":          s.Authorization.Mode == kubeletconfig.KubeletAuthorizationModeWebhook,
		"read-only port":         s.ReadOnlyPort == 0,
		"healthz port":           s.HealthzPort == 0,
		"certificate requests":   !s.RotateCertificates && !s.ServerTLSBootstrap,
		"cgroup v1":              !s.FailCgroupV1,
		"swap":                   !s.FailSwapOn,
		"cgroup root":            s.CgroupRoot == "/",
		"runtime":                s.ContainerRuntimeEndpoint == "unix:///run/moot/containerd.sock",
		"cluster DNS":            len(s.ClusterDNS) == 1 && s.ClusterDNS[0] == "10.43.0.10",
		"several images at once": !s.SerializeImagePulls,
		"name":                   s.HostnameOverride == "n1",
		"address":                s.NodeIP == "10.0.0.1",
		"an idle disk":           s.NodeStatusReportFrequency.Duration == time.Hour,
	} {
		if !ok {
			t.Errorf("not as wanted: %s", what)
		}
	}
}

func TestExtraArgs(t *testing.T) {
	cfg := testConfig(t)
	cfg.ExtraArgs = []string{
		"max-pods=42",
		"--node-labels=tier=edge",
		"feature-gates=KubeletInUserNamespace=true",
		"maxParallelImagePulls=7",
		// A dot in a map's key cannot be told from a level: the whole map it is.
		"evictionHard={memory.available: 1Gi}",
		"shutdownGracePeriod=30s",
		"memorySwap.swapBehavior=NoSwap",
		"image_gc_high_threshold=95",
	}
	s, err := newServer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	for what, ok := range map[string]bool{
		"flag":             s.MaxPods == 42,
		"flag of the node": s.NodeLabels["tier"] == "edge",
		"feature gate":     s.FeatureGates["KubeletInUserNamespace"],
		"field":            s.MaxParallelImagePulls != nil && *s.MaxParallelImagePulls == 7,
		"map field":        s.EvictionHard["memory.available"] == "1Gi",
		"map field merges": s.EvictionHard["nodefs.available"] == "5%",
		"duration field":   s.ShutdownGracePeriod.Duration.String() == "30s",
		"underscores":      s.ImageGCHighThresholdPercent == 95,
		"the rest stays":   s.ReadOnlyPort == 0 && !s.FailSwapOn && s.CgroupRoot == "/",
	} {
		if !ok {
			t.Errorf("not as wanted: %s", what)
		}
	}
}

func TestExtraArgsRefused(t *testing.T) {
	for arg, want := range map[string]string{
		"max-podz=1":                      "neither a kubelet flag nor a field",
		"maxpods=1":                       "did you mean max-pods",
		"max-pods=many":                   "max-pods",
		"kubeconfig=/x":                   "the daemon wires this itself",
		"--rotate-server-certificates":    "the daemon issues",
		"serverTLSBootstrap=true":         "the daemon issues",
		"containerRuntimeEndpoint=unix:x": "the daemon wires this itself",
		"=1":                              "want name=value",
		"memorySwap.nonsense=1":           "nonsense",
		"maxParallelImagePulls=[":         "YAML",
		"max-pods=-1":                     "check kubelet settings",
		"node-labels=kubernetes.io/x=y":   "kubernetes.io",
	} {
		t.Run(arg, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.ExtraArgs = []string{arg}
			if _, err := newServer(&cfg); err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("error %v, want one with %q", err, want)
			}
		})
	}
}

func TestFingerprintFollowsSettings(t *testing.T) {
	cfg := testConfig(t)
	print := func(args ...string) string {
		cfg := cfg
		cfg.ExtraArgs = args
		s, err := newServer(&cfg)
		if err != nil {
			t.Fatal(err)
		}
		return fingerprint(s)
	}
	if a, b := print(), print(); a != b {
		t.Errorf("same settings, two fingerprints: %s, %s", a, b)
	}
	if a, b := print(), print("max-pods=42"); a == b {
		t.Error("other settings, same fingerprint")
	}
}

func TestValidate(t *testing.T) {
	cfg := testConfig(t)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"name":          func(c *Config) { c.NodeName = "No_Name" },
		"no address":    func(c *Config) { c.NodeIPs = nil },
		"loopback":      func(c *Config) { c.NodeIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"relative path": func(c *Config) { c.ClientCA = "ca.crt" },
		"driver":        func(c *Config) { c.CgroupDriver = "cgroup" },
		"no pods":       func(c *Config) { c.MaxPods = 0 },
		"no logger":     func(c *Config) { c.Log = nil },
	} {
		bad := cfg
		edit(&bad)
		if bad.Validate() == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}
