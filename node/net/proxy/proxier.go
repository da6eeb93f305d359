package proxy

import (
	"context"
	"errors"
	"fmt"
	stdnet "net"
	"os"
	"os/exec"
	"slices"
	"strings"

	netnft "github.com/google/nftables"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
	kubeproxyv1alpha1 "k8s.io/kube-proxy/config/v1alpha1"
	"k8s.io/kubernetes/pkg/proxy"
	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	proxyconfigscheme "k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"
)

// upstreamConfig is upstream's defaults with what differs here.
func upstreamConfig(cfg *Config, mode Mode) (*proxyconfig.KubeProxyConfiguration, error) {
	versioned := &kubeproxyv1alpha1.KubeProxyConfiguration{}
	proxyconfigscheme.Scheme.Default(versioned)
	out := &proxyconfig.KubeProxyConfiguration{}
	if err := proxyconfigscheme.Scheme.Convert(versioned, out, nil); err != nil {
		return nil, fmt.Errorf("build proxy defaults: %w", err)
	}
	out.Mode = proxyconfig.ProxyMode(mode)
	out.HostnameOverride = cfg.NodeName
	out.DetectLocalMode = proxyconfig.LocalModeClusterCIDR
	out.DetectLocal.ClusterCIDRs = []string{cfg.ClusterCIDR.String()}
	// All of the node's addresses serve NodePorts, whatever network they are on.
	out.NodePortAddresses = nil
	out.HealthzBindAddress, out.MetricsBindAddress = "", ""
	return out, nil
}

// newProxier builds the proxier of the first mode that works on this host.
func (p *Proxy) newProxier(ctx context.Context, recorder events.EventRecorder) (proxy.Provider, Mode, error) {
	modes := []Mode{p.cfg.Mode}
	if p.cfg.Mode == Auto {
		modes = []Mode{NFTables, IPTables}
	}
	var errs []error
	for _, mode := range modes {
		proxier, err := p.newProxierOf(ctx, mode, recorder)
		if err == nil {
			if len(errs) > 0 {
				p.cfg.Log.Warn("Services are proxied with iptables", "why", errors.Join(errs...))
			}
			return proxier, mode, nil
		}
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("no way to proxy Services: %w; install the package nftables", errors.Join(errs...))
}

func (p *Proxy) newProxierOf(ctx context.Context, mode Mode, recorder events.EventRecorder) (proxy.Provider, error) {
	program := "nft"
	if mode == IPTables {
		program = "iptables"
	}
	if _, err := exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("mode %s: find %s: %w", mode, program, err)
	}
	conf, err := upstreamConfig(&p.cfg, mode)
	if err != nil {
		return nil, err
	}
	family := corev1.IPv4Protocol
	if p.cfg.NodeIP.Is6() {
		family = corev1.IPv6Protocol
	}
	local := proxyutil.NewDetectLocalByCIDR(p.cfg.ClusterCIDR.String())
	nodeIP := stdnet.IP(p.cfg.NodeIP.AsSlice())
	var proxier proxy.Provider
	if mode == NFTables {
		if err := ensureTable(family); err != nil {
			return nil, err
		}
		proxier, err = nftables.NewProxier(ctx, conf, family, local, p.cfg.NodeName, nodeIP, recorder, nil, false)
	} else {
		tables := utiliptables.NewBestEffort()[family]
		if tables == nil {
			return nil, fmt.Errorf("mode %s: iptables does not work on this host", mode)
		}
		proxier, err = iptables.NewProxier(ctx, conf, family, tables, utilsysctl.New(), local, p.cfg.NodeName, nodeIP, recorder, nil, false)
	}
	if err != nil {
		return nil, fmt.Errorf("mode %s: %w", mode, err)
	}
	return proxier, nil
}

// ensureTable makes the proxier's table if it is not there: upstream lists what
// is in it before it makes it, and logs an error. It also tells, before anything
// depends on it, whether the kernel has nftables at all.
func ensureTable(family corev1.IPFamily) error {
	conn, err := netnft.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &netnft.Table{Name: "kube-proxy", Family: netnft.TableFamilyIPv4}
	if family == corev1.IPv6Protocol {
		table.Family = netnft.TableFamilyIPv6
	}
	conn.AddTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table: %w", err)
	}
	return nil
}

// removeOther removes the rules an earlier start left in the other mode: both at
// once would translate a packet twice.
func removeOther(ctx context.Context, mode Mode) {
	if mode == IPTables {
		nftables.CleanupLeftovers(ctx)
		return
	}
	if _, err := exec.LookPath("iptables-save"); err == nil && mayHaveIPTablesRules() {
		iptables.CleanupLeftovers(ctx)
	}
}

// mayHaveIPTablesRules tells whether it is worth a second of running iptables
// programs to look for rules of the proxier. Today's iptables keeps its chains in
// nftables, which are listed in a moment; the older one has tables of its own.
func mayHaveIPTablesRules() bool {
	for _, list := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if names, err := os.ReadFile(list); err == nil && len(names) > 0 {
			return true
		}
	}
	conn, err := netnft.New()
	if err != nil {
		return true
	}
	chains, err := conn.ListChains()
	return err != nil || slices.ContainsFunc(chains, func(c *netnft.Chain) bool {
		return strings.HasPrefix(c.Name, "KUBE-")
	})
}

// Cleanup removes all rules of the proxy from this host, in every mode.
// Connections through Services that are open stay so.
func Cleanup(ctx context.Context) error {
	failed := nftables.CleanupLeftovers(ctx)
	if _, err := exec.LookPath("iptables-save"); err == nil {
		failed = iptables.CleanupLeftovers(ctx) || failed
	}
	if failed {
		return errors.New("remove Service rules: see the log")
	}
	return nil
}
