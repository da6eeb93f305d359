package node

import (
	"net/netip"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	tests := []struct {
		name   string
		change func(*Config)
		want   string // part of the error
	}{
		{"relative data dir", func(c *Config) { c.DataDir = "x" }, "--data-dir"},
		{"node name", func(c *Config) { c.NodeName = "Not A Name" }, "--node-name"},
		{"loopback node address", func(c *Config) { c.NodeIP = local }, "--node-ip"},
		{"address of another machine", func(c *Config) { c.NodeIP = netip.MustParseAddr("192.0.2.77") }, "no interface"},
		{"host bits", func(c *Config) { c.ClusterCIDR = netip.MustParsePrefix("10.42.0.1/16") }, "did you mean 10.42.0.0/16"},
		{"overlap", func(c *Config) { c.ServiceCIDR = netip.MustParsePrefix("10.42.0.0/20") }, "overlap"},
		{"too small", func(c *Config) { c.ServiceCIDR = netip.MustParsePrefix("10.43.0.0/30") }, "too small"},
		{"port", func(c *Config) { c.APIPort = 70000 }, "--api-port"},
		{"driver", func(c *Config) { c.CgroupDriver = "none" }, "--cgroup-driver"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.NodeName = "n1"
			test.change(&cfg)
			err := cfg.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestDNSServiceIP(t *testing.T) {
	cfg := DefaultConfig()
	if got, want := cfg.dnsServiceIP(), netip.MustParseAddr("10.43.0.10"); got != want {
		t.Errorf("DNS address %s, want %s", got, want)
	}
}

func TestKernelVersion(t *testing.T) {
	tests := []struct {
		release      string
		major, minor int
		ok           bool
	}{
		{"6.1.0-18-amd64", 6, 1, true},
		{"5.10-rc3+", 5, 10, true},
		{"6", 0, 0, false},
		{"six.one", 0, 0, false},
	}
	for _, test := range tests {
		major, minor, ok := kernelVersion(test.release)
		if ok != test.ok || ok && (major != test.major || minor != test.minor) {
			t.Errorf("%q: %d.%d %v, want %d.%d %v", test.release, major, minor, ok, test.major, test.minor, test.ok)
		}
	}
}

func TestNodeIPIsNotTheClustersOwn(t *testing.T) {
	cfg := DefaultConfig()
	for addr, want := range map[string]bool{
		"192.0.2.10": true,
		"10.42.0.1":  false, // the pod network's gateway, on lo and on every pod's interface
		"10.43.0.10": false,
		"127.0.0.1":  false,
		"fe80::1":    false,
	} {
		if got := cfg.mayBeNodeIP(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s may be the node's address: %v, want %v", addr, got, want)
		}
	}
}
