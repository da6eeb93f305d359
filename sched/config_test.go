package sched

import (
	"net/netip"
	"testing"
)

func goodConfig() Config {
	cfg := DefaultConfig()
	cfg.Term, cfg.StateDir = 1, "/run/x"
	cfg.Controllers, cfg.Scheduler, cfg.Leader = "/c", "/s", "/l"
	cfg.CACert, cfg.CAKey, cfg.ServiceAccountKey = "/a", "/b", "/k"
	cfg.APIServers = func() []netip.AddrPort { return nil }
	return cfg
}

func TestConfigValidate(t *testing.T) {
	cfg := goodConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no term":        func(c *Config) { c.Term = 0 },
		"term too large": func(c *Config) { c.Term = maxTerm + 1 },
		"relative path":  func(c *Config) { c.Scheduler = "s" },
		"no list":        func(c *Config) { c.APIServers = nil },
		"grace":          func(c *Config) { c.NodeGrace = 0 },
		"no name":        func(c *Config) { c.Nodes = func() []NodeHealth { return nil } },
		"brake":          func(c *Config) { c.BrakeWindow = 0 },
		"pause":          func(c *Config) { c.MaxPause = c.NodeGrace },
		"bound":          func(c *Config) { c.StopWithin = 0 },
		"logger":         func(c *Config) { c.Log = nil },
	} {
		cfg := goodConfig()
		spoil(&cfg)
		if cfg.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
