// Package cni is the pod network plugin: the CNI type "moot".
//
// One call does what four reference plugins do in four processes: a routed
// veth pair, an address from the node's own range, masquerading of traffic
// that leaves the cluster, and host ports. The pair is routed and not bridged,
// so all traffic between pods passes the host's routing and connection
// tracking: Services work between pods of one node without br_netfilter, and
// a pod reaches itself through its own Service.
//
// Data flow: the runtime runs the binary with CNI_COMMAND set and a network
// configuration on standard input; the plugin allocates from a directory of
// files under a file lock, sets links, addresses and routes over netlink, and
// keeps one nftables table per address family. It owns no goroutine and keeps
// no state of its own beyond that directory.
//
// It may be killed at any point. What it does for a sandbox begins with the
// file of its address and ends with it, and all else can be found from the
// container's id that is in there: the name of the host's end of the pair is
// made of it, and rules carry it. So DEL or GC take back whatever was done.
//
// It refuses to carry pod traffic between nodes (routes are the daemon's), to
// forward host ports of the loopback address, and to chain after another
// plugin.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// PluginType is the plugin's name in a network configuration and the name its
// binary must have in the CNI plugin directory.
const PluginType = "moot"

// DefaultDataDir holds the address allocations. It is lost at a reboot, as the
// pods are, so that a power cut leaks no address.
const DefaultDataDir = "/run/moot/cni"

// Config is the network configuration of the plugin.
type Config struct {
	types.PluginConf
	// Subnets are the node's own pod ranges, at most one per address family.
	// The first address of each is the gateway.
	Subnets []string `json:"subnets"`
	// MTU of the pair; 0 leaves the kernel's default.
	MTU int `json:"mtu,omitempty"`
	// Masquerade rewrites the source of pod traffic that leaves ClusterCIDRs.
	Masquerade bool `json:"masquerade,omitempty"`
	// ClusterCIDRs are the ranges that pods reach with their own address.
	ClusterCIDRs []string `json:"clusterCIDRs,omitempty"`
	// DataDir holds the address allocations; empty means DefaultDataDir.
	DataDir string `json:"dataDir,omitempty"`
	// RuntimeConfig is filled in by the runtime for the capabilities that the
	// configuration lists.
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig"`
}

// PortMapping forwards a port of the node to the pod.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Main runs the plugin by the CNI protocol: command in the environment,
// configuration on standard input, result or error on standard output. It
// returns the status to exit with.
func Main(getenv func(string) string) int {
	if getenv("CNI_COMMAND") == "" {
		_, _ = io.WriteString(os.Stderr, "moot: a CNI plugin; the container runtime runs it\n")
		return 1
	}
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add:    add,
		Del:    del,
		Check:  check,
		GC:     collect,
		Status: status,
	}, version.All, "moot: routed pod network")
	if err == nil {
		return 0
	}
	if printErr := err.Print(); printErr != nil {
		_, _ = fmt.Fprintln(os.Stderr, printErr)
	}
	return 1
}

// network is a checked configuration.
type network struct {
	name       string
	version    string
	mtu        int
	masquerade bool
	subnets    []netip.Prefix
	cluster    []netip.Prefix
	dataDir    string
	ports      []PortMapping
	prev       *types.PluginConf
	valid      []types.GCAttachment
}

// parse reads and checks a configuration. It never panics on bad input.
func parse(data []byte) (*network, error) {
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("parse network configuration: %w", err)
	}
	if len(c.Subnets) == 0 {
		return nil, errors.New("parse network configuration: no subnets")
	}
	n := &network{
		name:       c.Name,
		version:    c.CNIVersion,
		mtu:        c.MTU,
		masquerade: c.Masquerade,
		dataDir:    c.DataDir,
		ports:      c.RuntimeConfig.PortMappings,
		prev:       &c.PluginConf,
		valid:      c.ValidAttachments,
	}
	if n.dataDir == "" {
		n.dataDir = DefaultDataDir
	}
	var err error
	if n.subnets, err = parseCIDRs(c.Subnets); err != nil {
		return nil, fmt.Errorf("parse subnets: %w", err)
	}
	if n.cluster, err = parseCIDRs(c.ClusterCIDRs); err != nil {
		return nil, fmt.Errorf("parse clusterCIDRs: %w", err)
	}
	seen := map[bool]bool{}
	for _, s := range n.subnets {
		v6 := s.Addr().Is6()
		if seen[v6] {
			return nil, errors.New("parse subnets: more than one of an address family")
		}
		seen[v6] = true
	}
	for _, p := range n.ports {
		if err := p.validate(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func parseCIDRs(in []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		if p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s is not a network address", s)
		}
		out = append(out, p)
	}
	return out, nil
}

func (p PortMapping) validate() error {
	if p.HostPort < 0 || p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
		return fmt.Errorf("map host port %d to %d: out of range", p.HostPort, p.ContainerPort)
	}
	if _, ok := protocolNumber(p.Protocol); !ok {
		return fmt.Errorf("map host port %d: unknown protocol %q", p.HostPort, p.Protocol)
	}
	if p.HostIP != "" && net.ParseIP(p.HostIP) == nil {
		return fmt.Errorf("map host port %d: bad host address %q", p.HostPort, p.HostIP)
	}
	return nil
}
