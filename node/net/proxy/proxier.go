package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	stdnet "net"
	"net/netip"
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
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	"k8s.io/kubernetes/pkg/proxy/metaproxier"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"

	"github.com/mootkube/moot/ebpf"
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
	for _, cidr := range cfg.ClusterCIDRs {
		out.DetectLocal.ClusterCIDRs = append(out.DetectLocal.ClusterCIDRs, cidr.String())
	}
	// All of the node's addresses serve NodePorts, whatever network they are on.
	out.NodePortAddresses = nil
	out.HealthzBindAddress, out.MetricsBindAddress = "", ""
	return out, nil
}

// newPlane opens the data plane of the first mode that works on this host.
func (p *Proxy) newPlane(ctx context.Context, recorder events.EventRecorder) (*plane, Serving, error) {
	modes := []Mode{p.cfg.Mode}
	if p.cfg.Mode == Auto {
		modes = []Mode{EBPF, NFTables, IPTables}
	}
	var errs []error
	for _, mode := range modes {
		var pl *plane
		var err error
		if mode == EBPF {
			pl, err = p.openBalancer(recorder)
		} else {
			pl, err = p.kubeProxy(ctx, mode, recorder)
		}
		if err == nil {
			serving := Serving{Mode: mode}
			if err := errors.Join(errs...); err != nil {
				serving.Why = err.Error()
				p.cfg.Log.Warn("Services are served by kube-proxy", "mode", mode, "why", err)
			}
			return pl, serving, nil
		}
		errs = append(errs, err)
	}
	return nil, Serving{}, fmt.Errorf("no way to proxy Services: %w; install the package nftables", errors.Join(errs...))
}

// kubeProxy is upstream's proxier, for both families where pods have both.
func (p *Proxy) kubeProxy(ctx context.Context, mode Mode, recorder events.EventRecorder) (*plane, error) {
	var proxiers []proxy.Provider
	for _, cidr := range p.cfg.ClusterCIDRs {
		one, err := p.newProxierOf(ctx, mode, cidr, recorder)
		if err != nil {
			return nil, err
		}
		proxiers = append(proxiers, one)
	}
	provider := proxiers[0]
	if len(proxiers) > 1 {
		first, second := proxiers[0], proxiers[1]
		if p.cfg.ClusterCIDRs[0].Addr().Is6() {
			first, second = second, first
		}
		provider = metaproxier.NewMetaProxier(first, second)
	}
	return kubePlane(provider), nil
}

func (p *Proxy) newProxierOf(ctx context.Context, mode Mode, cidr netip.Prefix, recorder events.EventRecorder) (proxy.Provider, error) {
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
	if cidr.Addr().Is6() {
		family = corev1.IPv6Protocol
	}
	local := proxyutil.NewDetectLocalByCIDR(cidr.String())
	var nodeIP stdnet.IP
	for _, ip := range p.cfg.NodeIPs {
		if ip.Is6() == cidr.Addr().Is6() {
			nodeIP = ip.AsSlice()
		}
	}
	// Health check ports of Services ask it; it listens on nothing of its own.
	health := healthcheck.NewProxyHealthServer("", 2*conf.SyncPeriod.Duration, nil)
	var proxier proxy.Provider
	if mode == NFTables {
		if err := ensureTable(family); err != nil {
			return nil, err
		}
		proxier, err = nftables.NewProxier(ctx, conf, family, local, p.cfg.NodeName, nodeIP, recorder, health, false)
	} else {
		tables := utiliptables.NewBestEffort()[family]
		if tables == nil {
			return nil, fmt.Errorf("mode %s: iptables does not work on this host", mode)
		}
		proxier, err = iptables.NewProxier(ctx, conf, family, tables, utilsysctl.New(), local, p.cfg.NodeName, nodeIP, recorder, health, false)
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

// removeOther removes what an earlier start left of the other modes: two at
// once would translate a packet twice.
func removeOther(ctx context.Context, cfg Config, mode Mode) {
	if mode != EBPF {
		if err := ebpf.Remove(ebpf.Config{Pins: cfg.Pins, Log: cfg.Log}); err != nil {
			cfg.Log.Warn("the eBPF data plane of an earlier start may serve beside kube-proxy", "err", err)
		}
	}
	if mode == None {
		return // what is there may be a kube-proxy that somebody else runs
	}
	if mode != NFTables {
		nftables.CleanupLeftovers(ctx)
	}
	if mode == IPTables {
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

// Cleanup removes all that the proxy left on this host, in every mode; pins is
// the [Config]'s. Connections through kube-proxy that are open stay so.
func Cleanup(ctx context.Context, pins string) error {
	bpf := ebpf.Remove(ebpf.Config{Pins: pins, Log: slog.New(slog.DiscardHandler)})
	failed := nftables.CleanupLeftovers(ctx)
	if _, err := exec.LookPath("iptables-save"); err == nil {
		failed = iptables.CleanupLeftovers(ctx) || failed
	}
	if failed {
		return errors.Join(bpf, errors.New("remove Service rules: see the log"))
	}
	return bpf
}
