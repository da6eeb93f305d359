package net

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
)

// Config is what a node's network agent is told. Start from [DefaultConfig].
type Config struct {
	NodeName     string
	NodeIPs      []netip.Addr   // this node's addresses among the nodes, at most one per family
	ClusterCIDRs []netip.Prefix // all pods of the cluster, at most one per family
	Kubeconfig   string         // of a client that may change Nodes, evict pods and record Events
	Mode         Mode
	OverlayPort  int    // UDP port of the overlay, the same on all nodes
	CNIConfFile  string // written once the node's pod network is known
	CNIDataDir   string // where the plugin keeps which pod has which address
	MTU          int    // of pods' interfaces; 0 takes it from the interface of the node's address

	// Number is the node's number in the cluster, from 1 on. Which part of
	// ClusterCIDRs the node takes follows from it.
	Number func() int
	// Replace changes the pod networks of this node's Node from what they are
	// to others, which the API does not allow. It must not when they are not
	// what was expected, and may return an error then.
	Replace func(ctx context.Context, from, to []string) error

	Log *slog.Logger
}

// DefaultConfig returns a configuration with the usual paths.
func DefaultConfig() Config {
	return Config{
		Mode:        ModeAuto,
		OverlayPort: DefaultOverlayPort,
		CNIConfFile: "/etc/cni/net.d/10-moot.conflist",
		CNIDataDir:  "/run/moot/cni",
		Number:      func() int { return 1 },
		Log:         slog.Default(),
	}
}

// DefaultOverlayPort is where Linux's VXLAN has always listened.
const DefaultOverlayPort = 8472

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.NodeName == "" {
		add("node name: not set")
	}
	if len(c.NodeIPs) == 0 || slices.ContainsFunc(c.NodeIPs, func(a netip.Addr) bool { return !a.IsValid() }) {
		add("node address: not set")
	}
	if len(c.ClusterCIDRs) == 0 {
		add("cluster CIDR: not set")
	}
	for i, p := range c.ClusterCIDRs {
		if !p.IsValid() || p != p.Masked() || p.Bits() > nodeBits(p) {
			add("cluster CIDR %s: not a network address with room for nodes", p)
		}
		if slices.ContainsFunc(c.ClusterCIDRs[:i], func(o netip.Prefix) bool { return o.Addr().Is6() == p.Addr().Is6() }) {
			add("cluster CIDR %s: a second one of its family", p)
		}
	}
	for _, path := range []string{c.Kubeconfig, c.CNIConfFile, c.CNIDataDir} {
		if !filepath.IsAbs(path) {
			add("path %q: must be absolute", path)
		}
	}
	if c.Mode != ModeAuto && c.Mode != ModeVXLAN && c.Mode != ModeNone {
		add("mode %q: must be auto, vxlan or none", c.Mode)
	}
	if c.OverlayPort < 1 || c.OverlayPort > 65535 {
		add("overlay port %d: out of range", c.OverlayPort)
	}
	if c.MTU < 0 || c.MTU > 65535 {
		add("MTU %d: out of range", c.MTU)
	}
	if c.Number == nil || c.Log == nil {
		add("number or logger: not set")
	}
	return errors.Join(errs...)
}

// local is this node's end of the overlay: its address of the family that the
// first cluster CIDR has, or whichever it has.
func (c *Config) local() netip.Addr {
	if a, ok := ofFamily(c.NodeIPs, c.ClusterCIDRs[0].Addr().Is6()); ok {
		return a
	}
	return c.NodeIPs[0]
}
