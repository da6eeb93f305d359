package net

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
)

// Config is what a node's network agent is told. Start from [DefaultConfig].
type Config struct {
	NodeName    string
	NodeIP      netip.Addr   // this node's address among the nodes
	ClusterCIDR netip.Prefix // all pods of the cluster
	Kubeconfig  string       // needs get, list and watch on nodes
	CNIConfFile string       // written once the node's pod network is known
	CNIDataDir  string       // where the plugin keeps which pod has which address
	MTU         int          // of pods' interfaces; 0 takes it from the interface of NodeIP
	Log         *slog.Logger
}

// DefaultConfig returns a configuration with the usual paths.
func DefaultConfig() Config {
	return Config{
		CNIConfFile: "/etc/cni/net.d/10-moot.conflist",
		CNIDataDir:  "/run/moot/cni",
		Log:         slog.Default(),
	}
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.NodeName == "" {
		add("node name: not set")
	}
	if !c.NodeIP.IsValid() {
		add("node address: not set")
	}
	if !c.ClusterCIDR.IsValid() || c.ClusterCIDR != c.ClusterCIDR.Masked() {
		add("cluster CIDR %s: not a network address", c.ClusterCIDR)
	}
	for _, path := range []string{c.Kubeconfig, c.CNIConfFile, c.CNIDataDir} {
		if !filepath.IsAbs(path) {
			add("path %q: must be absolute", path)
		}
	}
	if c.MTU < 0 || c.MTU > 65535 {
		add("MTU %d: out of range", c.MTU)
	}
	if c.Log == nil {
		add("logger: not set")
	}
	return errors.Join(errs...)
}
