package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/mootkube/moot/node/join"
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
		{"node name too long for a label", func(c *Config) { c.NodeName = strings.Repeat("n", 64) }, "no more than 63 characters"},
		{"loopback node address", func(c *Config) { c.NodeIP = local }, "--node-ip"},
		{"address of another machine", func(c *Config) { c.NodeIP = netip.MustParseAddr("192.0.2.77") }, "no interface"},
		{"host bits", func(c *Config) { c.ClusterCIDR = join.Networks{First: netip.MustParsePrefix("10.42.0.1/16")} }, "did you mean 10.42.0.0/16"},
		{"overlap", func(c *Config) { c.ServiceCIDR = join.Networks{First: netip.MustParsePrefix("10.42.0.0/20")} }, "overlap"},
		{"too small", func(c *Config) { c.ServiceCIDR = join.Networks{First: netip.MustParsePrefix("10.43.0.0/30")} }, "too small"},
		{"two of one family", func(c *Config) { c.ClusterCIDR.Second = netip.MustParsePrefix("10.44.0.0/16") }, "one of IPv4 and one of IPv6"},
		{"pods of two families, Services of one", func(c *Config) { c.ClusterCIDR.Second = netip.MustParsePrefix("fd42::/48") }, "same address families"},
		{"families in another order", func(c *Config) {
			c.ClusterCIDR.Second = netip.MustParsePrefix("fd42::/48")
			c.ServiceCIDR = networks("fd43::/112,10.43.0.0/16")
		}, "in the same order"},
		{"IPv6 Services too many", func(c *Config) {
			c.ClusterCIDR, c.ServiceCIDR = networks("10.42.0.0/16,fd42::/48"), networks("10.43.0.0/16,fd43::/64")
		}, "/108 or smaller"},
		{"IPv6 pods for too few nodes", func(c *Config) {
			c.ClusterCIDR, c.ServiceCIDR = networks("10.42.0.0/16,fd42::/64"), networks("10.43.0.0/16,fd43::/112")
		}, "/62 or larger"},
		{"overlap in IPv6", func(c *Config) {
			c.ClusterCIDR, c.ServiceCIDR = networks("10.42.0.0/16,fd42::/48"), networks("10.43.0.0/16,fd42::/112")
		}, "overlap"},
		{"two addresses of one family", func(c *Config) {
			c.NodeIP, c.NodeIP2 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		}, "one of IPv4 and one of IPv6"},
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

func networks(text string) join.Networks {
	n, err := join.ParseNetworks(text)
	if err != nil {
		panic(err)
	}
	return n
}

func TestDualStackAddresses(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ClusterCIDR, cfg.ServiceCIDR = networks("fd42::/48,10.42.0.0/16"), networks("fd43::/112,10.43.0.0/16")
	cfg.NodeIP, cfg.NodeIP2 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	if err := errors.Join(cfg.validateCIDRs()...); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(cfg.nodeIPs()); got != "[2001:db8::1 192.0.2.1]" {
		t.Errorf("addresses %s, want those of the pods' first family first", got)
	}
	if got := fmt.Sprint(cfg.dnsServiceIPs(), cfg.secondServiceIP()); got != "[fd43::a 10.43.0.10] [10.43.0.1]" {
		t.Errorf("Service addresses %s", got)
	}
	cfg.DataDir = t.TempDir()
	if err := cfg.fitFamilies(); err != nil || cfg.NodeIP2 != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("addresses that were given changed: %v, %v", cfg.nodeIPs(), err)
	}
	if got := cfg.savedNodeIPs(); fmt.Sprint(got) != fmt.Sprint(cfg.nodeIPs()) {
		t.Errorf("addresses %v come back as %v", cfg.nodeIPs(), got)
	}
}

// What a power cut leaves of a file that is written over may be nothing.
func TestSavedAddressesAreReplacedAsAWhole(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DataDir, cfg.NodeIP = t.TempDir(), netip.MustParseAddr("192.0.2.1")
	if err := cfg.saveNodeIPs(); err != nil {
		t.Fatal(err)
	}
	old := cfg.nodeIPFile() + ".old"
	if err := os.Link(cfg.nodeIPFile(), old); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		cfg.NodeIP = netip.MustParseAddr(ip)
		if err := cfg.saveNodeIPs(); err != nil || fmt.Sprint(cfg.savedNodeIPs()) != "["+ip+"]" {
			t.Errorf("saved %v: %v", cfg.savedNodeIPs(), err)
		}
		if text, err := os.ReadFile(old); err != nil || string(text) != "192.0.2.1\n" {
			t.Errorf("the file of before has %q: %v", text, err)
		}
	}
}

func TestDNSServiceIP(t *testing.T) {
	cfg := DefaultConfig()
	if got, want := cfg.dnsServiceIPs()[0], netip.MustParseAddr("10.43.0.10"); got != want {
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
