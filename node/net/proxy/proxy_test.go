package proxy

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"

	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
)

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.NodeName, cfg.NodeIPs = "n1", []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	cfg.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	cfg.Kubeconfig, cfg.Log = "/kubeconfig", slog.New(slog.DiscardHandler)
	return cfg
}

func TestUpstreamConfig(t *testing.T) {
	cfg := testConfig()
	for _, mode := range []Mode{NFTables, IPTables} {
		got, err := upstreamConfig(&cfg, mode)
		if err != nil {
			t.Fatal(err)
		}
		for what, ok := range map[string]bool{
			"mode":              got.Mode == proxyconfig.ProxyMode(mode),
			"ports of its own":  got.HealthzBindAddress == "" && got.MetricsBindAddress == "",
			"local traffic":     got.DetectLocalMode == proxyconfig.LocalModeClusterCIDR && slices.Equal(got.DetectLocal.ClusterCIDRs, []string{"10.42.0.0/16"}),
			"mark for nftables": got.NFTables.MasqueradeBit != nil,
			"mark for iptables": got.IPTables.MasqueradeBit != nil && got.IPTables.LocalhostNodePorts != nil,
			"full sync":         got.SyncPeriod.Duration > 0 && got.MinSyncPeriod.Duration > 0,
		} {
			if !ok {
				t.Errorf("%s: not as wanted: %s", mode, what)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	cfg := testConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"mode":       func(c *Config) { c.Mode = "ipvs" },
		"kubeconfig": func(c *Config) { c.Kubeconfig = "" },
		"node":       func(c *Config) { c.NodeName = "" },
		"address":    func(c *Config) { c.NodeIPs = nil },
		"pins":       func(c *Config) { c.Pins = "moot" },
		"doubts":     func(c *Config) { c.Doubts = nil },
		"logger":     func(c *Config) { c.Log = nil },
	} {
		bad := cfg
		edit(&bad)
		if bad.Validate() == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}

func TestSyncWatch(t *testing.T) {
	calls := 0
	s := newSyncWatch(func() { calls++ })
	s.OnServiceSynced()
	s.OnServiceSynced()
	if calls != 0 {
		t.Fatal("done after one kind of object")
	}
	var both sync.WaitGroup
	for range 8 {
		both.Go(s.OnServiceSynced)
		both.Go(s.OnEndpointSlicesSynced)
	}
	both.Wait()
	if calls != 1 {
		t.Fatalf("done %d times", calls)
	}
}
