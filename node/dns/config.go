package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
)

// Config is what a node's DNS server is told. Start from [DefaultConfig].
type Config struct {
	NodeName   string
	Listen     []netip.Addr // addresses on this host, port 53 by the default Corefile; pods must reach them
	Service    []netip.Addr // addresses of the Service that leads here
	Domain     string       // the cluster's domain
	Kubeconfig string       // of a member of pki.GroupDNS, see [Objects]
	StateDir   string       // where the last configuration that loaded is kept
	ResolvConf []string     // resolver configurations of the host, best first
	// Doubt tells how little this node counts on who has an address: 0 is not to
	// doubt it. It is called for every address in an answer about the cluster.
	Doubt func(netip.Addr) int
	// Idle, when there is one, is told why no question can be answered at the
	// start, at each try: somebody else has the port, for one.
	Idle func(error)
	// RestoreKlog is called after every load of a configuration, to make klog's
	// global logger what it was. CoreDNS replaces it and cannot be told not to.
	RestoreKlog func()
	Log         *slog.Logger
}

// DefaultConfig returns a configuration with the usual paths, for a node that
// doubts nobody.
func DefaultConfig() Config {
	return Config{
		Domain:     "cluster.local",
		StateDir:   "/var/lib/moot/dns",
		ResolvConf: HostResolvConfs(),
		Doubt:      func(netip.Addr) int { return 0 },
		Log:        slog.Default(),
	}
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.NodeName == "" {
		add("node name: not set")
	}
	if len(c.Listen) == 0 {
		add("listen addresses: none")
	}
	for _, a := range c.Listen {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			add("listen address %s: not one pods can reach", a)
		}
	}
	if c.Domain == "" {
		add("domain: not set")
	}
	for _, path := range append([]string{c.Kubeconfig, c.StateDir}, c.ResolvConf...) {
		if !filepath.IsAbs(path) {
			add("path %q: must be absolute", path)
		}
	}
	if c.Doubt == nil || c.Log == nil {
		add("doubt or logger: not set")
	}
	return errors.Join(errs...)
}
