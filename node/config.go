package node

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mootkube/moot/node/join"
	mootnet "github.com/mootkube/moot/node/net"
	"github.com/mootkube/moot/node/net/proxy"
)

// Config is everything a node is told. The zero value is not usable; start
// from [DefaultConfig].
type Config struct {
	DataDir  string // what must survive a reboot: store, keys, images, volumes
	StateDir string // what must not: sockets, containerd's run state

	NodeName      string        // Kubernetes node name; default the host's name
	NodeIP        netip.Addr    // address the node is reached at; default that of the default route
	NodeIP2       netip.Addr    // that of the other family, where pods have both
	ClusterCIDR   join.Networks // pod addresses of the whole cluster
	ServiceCIDR   join.Networks // Service addresses
	ClusterDomain string        // DNS domain of the cluster

	Network     mootnet.Mode // how pods of different nodes reach each other
	OverlayPort int          // UDP port of the overlay

	ServiceProxy proxy.Mode // what serves Services on this node
	ServiceXDP   bool       // eBPF: also in network drivers

	Port int // TCP and UDP port of all traffic between members

	// Join is where a member of the cluster to become part of listens,
	// host:port; empty for the first node, and ignored by a node that is a
	// member already. Token is what proves the one to the other.
	Join  string
	Token string
	// ShowToken has the first node of a cluster print a token to join with, which
	// is not for a log that others may read.
	ShowToken bool

	APIPort int      // TCP port of the Kubernetes API
	TLSSANs []string // further names and addresses in the API's certificate

	CgroupRoot   string // cgroup that pods' cgroups are made under; default the root
	CgroupDriver string // "cgroupfs", "systemd" or "auto"

	RegistryDir string // hosts.toml tree of mirrors and certificate authorities, as containerd reads it

	// Extra arguments "key=value" for the upstream components' own flags.
	APIServerArgs  []string
	ControllerArgs []string
	SchedulerArgs  []string
	KubeletArgs    []string
}

// DefaultConfig returns the settings of a node that was told nothing.
func DefaultConfig() Config {
	return Config{
		DataDir:       "/var/lib/moot",
		StateDir:      "/run/moot",
		ClusterCIDR:   join.Networks{First: netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR:   join.Networks{First: netip.MustParsePrefix("10.43.0.0/16")},
		ClusterDomain: "cluster.local",
		Network:       mootnet.ModeAuto,
		OverlayPort:   mootnet.DefaultOverlayPort,
		ServiceProxy:  proxy.Auto,
		Port:          7443,
		APIPort:       6443,
		CgroupDriver:  "auto",
		RegistryDir:   "/etc/moot/certs.d",
	}
}

// Complete fills what can be learned from the host: name and address. A member
// keeps the name it joined by, whatever the host is called now.
func (c *Config) Complete() error {
	if m, err := c.loadMembership(); err == nil && m != nil && c.NodeName == "" {
		c.NodeName = m.Name
	}
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read host name: %w; give --node-name", err)
		}
		c.NodeName = strings.ToLower(host)
	}
	if !c.NodeIP.IsValid() {
		ip, err := c.findNodeIP(c.ClusterCIDR.First.Addr().Is6())
		if err != nil {
			return err
		}
		c.NodeIP = ip
	}
	return nil
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(c.DataDir) {
		add("--data-dir %q: must be an absolute path", c.DataDir)
	}
	if !filepath.IsAbs(c.StateDir) {
		add("--state-dir %q: must be an absolute path", c.StateDir)
	}
	if problems := validation.IsDNS1123Subdomain(c.NodeName); len(problems) > 0 {
		add("--node-name %q: %s", c.NodeName, problems[0])
	} else if len(c.NodeName) > validation.LabelValueMaxLength {
		add("--node-name %q: must be no more than %d characters, since it is a label of the Node", c.NodeName, validation.LabelValueMaxLength)
	}
	for i, ip := range []netip.Addr{c.NodeIP, c.NodeIP2} {
		switch {
		case i > 0 && !ip.IsValid():
		case !ip.IsValid() || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast():
			add("--node-ip %s: must be an address other machines reach this one at", ip)
		case !hasAddress(ip) && !slices.Contains(c.savedNodeIPs(), ip):
			add("--node-ip %s: no interface of this machine has it", ip)
		}
	}
	if c.NodeIP2.IsValid() && c.NodeIP.Is4() == c.NodeIP2.Is4() {
		add("--node-ip %s,%s: two addresses must be one of IPv4 and one of IPv6", c.NodeIP, c.NodeIP2)
	}
	errs = append(errs, c.validateCIDRs()...)
	if problems := validation.IsDNS1123Subdomain(c.ClusterDomain); len(problems) > 0 {
		add("--cluster-domain %q: %s", c.ClusterDomain, problems[0])
	}
	if c.APIPort < 1 || c.APIPort > 65535 {
		add("--api-port %d: must be between 1 and 65535", c.APIPort)
	}
	if c.Port < 1 || c.Port > 65535 || c.Port == c.APIPort {
		add("--port %d: must be between 1 and 65535 and not the API's port", c.Port)
	}
	if c.OverlayPort < 1 || c.OverlayPort > 65535 || c.OverlayPort == c.Port {
		add("--overlay-port %d: must be between 1 and 65535 and not the members' port", c.OverlayPort)
	}
	if c.Join != "" {
		if _, _, err := net.SplitHostPort(c.Join); err != nil {
			add("--join %q: must be host:port of a member, such as 192.0.2.10:%d", c.Join, c.Port)
		}
	}
	switch c.CgroupDriver {
	case "auto", "cgroupfs", "systemd":
	default:
		add("--cgroup-driver %q: must be auto, cgroupfs or systemd", c.CgroupDriver)
	}
	return errors.Join(errs...)
}

func (c *Config) validateCIDRs() []error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	check := func(flag string, networks join.Networks, bits4, bits6, least6 int) {
		if !networks.IsValid() {
			add("%s: not a network; write it like 10.42.0.0/16 or 10.42.0.0/16,fd42::/48", flag)
		}
		for _, p := range networks.All() {
			most := bits4
			if p.Addr().Is6() {
				most = bits6
			}
			switch {
			case p != p.Masked():
				add("%s %s: has host bits set; did you mean %s?", flag, p, p.Masked())
			case p.Bits() > most:
				add("%s %s: too small; /%d or larger is needed", flag, p, most)
			case p.Addr().Is6() && p.Bits() < least6:
				add("%s %s: too large; /%d or smaller is needed", flag, p, least6)
			}
			for _, ip := range c.nodeIPs() {
				if ip.IsValid() && p.Contains(ip) {
					add("%s %s: contains this node's address %s; choose another network", flag, p, ip)
				}
			}
		}
		if networks.Second.IsValid() && networks.First.Addr().Is4() == networks.Second.Addr().Is4() {
			add("%s %s: two networks must be one of IPv4 and one of IPv6", flag, networks)
		}
	}
	check("--cluster-cidr", c.ClusterCIDR, 22, 62, 8)
	check("--service-cidr", c.ServiceCIDR, 24, 120, 108) // upstream counts addresses in 20 bits
	if c.ClusterCIDR.Overlaps(c.ServiceCIDR) {
		add("--cluster-cidr %s and --service-cidr %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	}
	families := func(n join.Networks) (out []bool) {
		for _, p := range n.All() {
			out = append(out, p.Addr().Is6())
		}
		return out
	}
	if !slices.Equal(families(c.ClusterCIDR), families(c.ServiceCIDR)) {
		add("--cluster-cidr %s and --service-cidr %s: must have the same address families in the same order", c.ClusterCIDR, c.ServiceCIDR)
	}
	return errs
}

// KubeconfigPath is where the administrator's kubeconfig is written, mode 0600.
func (c *Config) KubeconfigPath() string { return filepath.Join(c.DataDir, "kubeconfig") }

// StatusSocket is where a running node answers `moot status`.
func (c *Config) StatusSocket() string { return filepath.Join(c.StateDir, "moot.sock") }

// RuntimeSocket is containerd's socket.
func (c *Config) RuntimeSocket() string { return filepath.Join(c.StateDir, "containerd.sock") }

// EtcdSocket is where the store serves the etcd API.
func (c *Config) EtcdSocket() string { return filepath.Join(c.StateDir, "etcd.sock") }

// nodeIPs are the node's addresses, that of the family first which pods have
// first.
func (c *Config) nodeIPs() []netip.Addr {
	all := []netip.Addr{c.NodeIP}
	if c.NodeIP2.IsValid() {
		all = append(all, c.NodeIP2)
		if c.ClusterCIDR.IsValid() && c.NodeIP.Is6() != c.ClusterCIDR.First.Addr().Is6() {
			slices.Reverse(all)
		}
	}
	return all
}

// dnsServiceIPs are the tenth addresses of the Service networks, as other
// distributions have it.
func (c *Config) dnsServiceIPs() []netip.Addr { return c.serviceIPs(10) }

// serviceIPs is the n-th address of each Service network.
func (c *Config) serviceIPs(n int) []netip.Addr {
	var out []netip.Addr
	for _, p := range c.ServiceCIDR.All() {
		out = append(out, nthAddress(p, n))
	}
	return out
}

// secondServiceIP is the API's address in the second Service network, where
// there is one, as text for a certificate.
func (c *Config) secondServiceIP() []string {
	var out []string
	for _, ip := range c.serviceIPs(1)[1:] {
		out = append(out, ip.String())
	}
	return out
}

func nthAddress(p netip.Prefix, n int) netip.Addr {
	addr := p.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	return addr
}

func hasAddress(ip netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == ip {
				return true
			}
		}
	}
	return false
}

// findNodeIP picks the address of the default route. On a machine whose uplink
// is gone, which must still start, it is the address of the last start. Without
// either it is the only one that is not the cluster's own.
func (c *Config) findNodeIP(v6 bool) (netip.Addr, error) {
	if ip, ok := defaultRouteIP(v6); ok && !c.ownsAddress(ip) {
		return ip, nil
	}
	for _, saved := range c.savedNodeIPs() {
		if saved.Is6() == v6 {
			return saved, nil // a stand-in interface has it if no other does
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list interface addresses: %w; give --node-ip", err)
	}
	found := map[netip.Addr]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().Is6() == v6 && c.mayBeNodeIP(ip.Unmap()) {
				found[ip.Unmap()] = true
			}
		}
	}
	if len(found) != 1 {
		return netip.Addr{}, fmt.Errorf("no default %s route and %d addresses to choose from: give --node-ip", familyName(v6), len(found))
	}
	return slices.Collect(maps.Keys(found))[0], nil
}

func (c *Config) mayBeNodeIP(ip netip.Addr) bool { return ip.IsGlobalUnicast() && !c.ownsAddress(ip) }

// ownsAddress reports whether an address is one of pods or Services.
func (c *Config) ownsAddress(ip netip.Addr) bool {
	return c.ClusterCIDR.Contains(ip) || c.ServiceCIDR.Contains(ip)
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// fitFamilies finds the address that the node lacks to have one of each family
// that pods have, once the cluster's networks are known.
func (c *Config) fitFamilies() error {
	for _, p := range c.ClusterCIDR.All() {
		v6 := p.Addr().Is6()
		if slices.ContainsFunc(c.nodeIPs(), func(a netip.Addr) bool { return a.Is6() == v6 }) {
			continue
		}
		ip, err := c.findNodeIP(v6)
		if err != nil {
			return fmt.Errorf("the cluster's pods have %s addresses, so its nodes need one: %w", familyName(v6), err)
		}
		c.NodeIP2 = ip
	}
	return c.saveNodeIPs()
}

// nodeIPFile keeps the address of the last start.
func (c *Config) nodeIPFile() string { return filepath.Join(c.DataDir, "node-ip") }

// defaultRouteIP is the source address the kernel picks for the default
// route. Nothing is sent.
func defaultRouteIP(v6 bool) (netip.Addr, bool) {
	target := "192.0.2.1:9"
	if v6 {
		target = "[2001:db8::1]:9"
	}
	conn, err := net.Dial("udp", target) //nolint:noctx // connecting a UDP socket sends nothing and cannot block
	if err != nil {
		return netip.Addr{}, false
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	a, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	ip := a.AddrPort().Addr().Unmap()
	return ip, ip.IsGlobalUnicast()
}

func (c *Config) pkiDir() string { return filepath.Join(c.DataDir, "pki") }

func (c *Config) apiAddr() netip.AddrPort { return netip.AddrPortFrom(c.NodeIP, uint16(c.APIPort)) } //nolint:gosec // Validate bounds the port

func (c *Config) peerAddr() netip.AddrPort { return netip.AddrPortFrom(c.NodeIP, uint16(c.Port)) } //nolint:gosec // Validate bounds the port
