package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/mootkube/moot/node/join"
)

func memberConfig(t *testing.T) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir, cfg.NodeName, cfg.NodeIP = t.TempDir(), "n1", netip.MustParseAddr("192.0.2.10")
	return cfg
}

func newTestNode(cfg Config) *Node {
	return &Node{cfg: cfg, log: slog.New(slog.DiscardHandler), progress: func(Progress) {}}
}

func TestFirstNodeBeginsACluster(t *testing.T) {
	cfg := memberConfig(t)
	cfg.ClusterDomain = "shop.example"
	n := newTestNode(cfg)
	m, err := n.enterCluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.Number != firstNumber || !m.Complete || !n.founds {
		t.Errorf("membership %+v, founds %v", m, n.founds)
	}
	// The next start knows it all again, with nothing given.
	cfg.ClusterDomain = DefaultConfig().ClusterDomain
	n = newTestNode(cfg)
	if m, err = n.enterCluster(t.Context()); err != nil || n.founds {
		t.Fatalf("second start: %v, founds %v", err, n.founds)
	}
	if n.cfg.ClusterDomain != "shop.example" || m.ClusterDomain != "shop.example" {
		t.Errorf("the cluster's domain became %s", n.cfg.ClusterDomain)
	}
}

func TestClusterSettingsCannotBeChanged(t *testing.T) {
	cfg := memberConfig(t)
	if _, err := newTestNode(cfg).enterCluster(t.Context()); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*Config){
		"--cluster-cidr":   func(c *Config) { c.ClusterCIDR = join.Networks{First: netip.MustParsePrefix("10.99.0.0/16")} },
		"--service-cidr":   func(c *Config) { c.ServiceCIDR = join.Networks{First: netip.MustParsePrefix("10.98.0.0/16")} },
		"--cluster-domain": func(c *Config) { c.ClusterDomain = "other.example" },
		"--node-name":      func(c *Config) { c.NodeName = "n2" },
	} {
		changed := cfg
		change(&changed)
		if _, err := newTestNode(changed).enterCluster(t.Context()); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestMemberKeepsItsName(t *testing.T) {
	cfg := memberConfig(t)
	if _, err := newTestNode(cfg).enterCluster(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg.NodeName = "" // and the host may be called otherwise by now
	if err := cfg.Complete(); err != nil || cfg.NodeName != "n1" {
		t.Errorf("name %q, %v", cfg.NodeName, err)
	}
}

func TestNodeThatLeftDoesNotStart(t *testing.T) {
	cfg := memberConfig(t)
	m := cfg.newMembership(firstNumber)
	m.Left = true
	if err := cfg.saveMembership(m); err != nil {
		t.Fatal(err)
	}
	if _, err := newTestNode(cfg).enterCluster(t.Context()); !errors.Is(err, ErrLeft) {
		t.Errorf("got %v, want ErrLeft", err)
	}
}

func TestOwnClusterIsNotGivenUpByJoining(t *testing.T) {
	cfg := memberConfig(t)
	if err := os.Mkdir(cfg.storeDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.Join, cfg.Token = "192.0.2.1:7443", "x"
	if _, err := newTestNode(cfg).enterCluster(t.Context()); err == nil || !strings.Contains(err.Error(), "cluster of its own") {
		t.Errorf("got %v", err)
	}
}
