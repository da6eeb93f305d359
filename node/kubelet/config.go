package kubelet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Config is what a kubelet is told. Start from [DefaultConfig].
type Config struct {
	NodeName   string            // name of the Node object
	NodeIPs    []netip.Addr      // the Node's internal addresses: one, or one per family
	NodeLabels map[string]string // labels set when the Node is registered

	RootDir    string // kubelet's own directory; CSI drivers expect the default
	PodLogsDir string // log files of containers; log agents expect the default
	GuardFile  string // where starts are marked, see [Guard]; empty for no guard

	Listen netip.AddrPort // where the kubelet API listens

	RuntimeSocket string // containerd's socket, a path
	Kubeconfig    string // how the kubelet reaches the API server, with its client certificate
	ClientCA      string // who may have signed the certificates of callers of the kubelet API
	ServingCert   string // certificate of the kubelet API
	ServingKey    string

	ClusterDNS    []netip.Addr // nameservers of pods
	ClusterDomain string
	ResolvConf    string // resolver configuration of pods that use the host's

	CgroupRoot   string // cgroup that "kubepods" is made under; "" and "/" mean the root
	CgroupDriver string // "cgroupfs" or "systemd"; the runtime's own answer wins

	MaxPods int

	// ExtraArgs are the user's settings, "name=value" or "--name=value". A name
	// is one of kubelet's flags, or a field of its KubeletConfiguration.
	ExtraArgs []string

	Log *slog.Logger
}

// DefaultConfig returns a configuration with upstream's paths and ports.
func DefaultConfig() Config {
	return Config{
		RootDir:       "/var/lib/kubelet",
		PodLogsDir:    "/var/log/pods",
		Listen:        netip.MustParseAddrPort("0.0.0.0:10250"),
		ClusterDomain: "cluster.local",
		ResolvConf:    "/etc/resolv.conf",
		CgroupDriver:  "cgroupfs",
		MaxPods:       110,
		Log:           slog.Default(),
	}
}

// Validate says what is wrong with the settings, all of it at once. It looks at
// nothing outside the configuration; see [Preflight] for the host.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if problems := validation.IsDNS1123Subdomain(c.NodeName); len(problems) > 0 {
		add("node name %q: %s", c.NodeName, problems[0])
	}
	if len(c.NodeIPs) == 0 || len(c.NodeIPs) > 2 {
		add("node addresses: want one, or one per family, have %d", len(c.NodeIPs))
	}
	for _, ip := range c.NodeIPs {
		if !ip.IsValid() || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
			add("node address %s: must be an address other nodes can reach", ip)
		}
	}
	for _, p := range []struct{ what, path string }{
		{"root directory", c.RootDir}, {"pod log directory", c.PodLogsDir},
		{"runtime socket", c.RuntimeSocket}, {"kubeconfig", c.Kubeconfig},
		{"client CA", c.ClientCA}, {"serving certificate", c.ServingCert}, {"serving key", c.ServingKey},
		{"resolver configuration", c.ResolvConf},
	} {
		if !filepath.IsAbs(p.path) {
			add("%s %q: must be an absolute path", p.what, p.path)
		}
	}
	if !c.Listen.IsValid() {
		add("listen address: not set")
	}
	if c.CgroupDriver != "cgroupfs" && c.CgroupDriver != "systemd" {
		add("cgroup driver %q: must be cgroupfs or systemd", c.CgroupDriver)
	}
	if c.MaxPods < 1 {
		add("max pods %d: must be at least 1", c.MaxPods)
	}
	if c.Log == nil {
		add("logger: not set")
	}
	return errors.Join(errs...)
}
