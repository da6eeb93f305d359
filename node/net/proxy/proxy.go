// Package proxy serves Services on this node: by the kernel's eBPF data plane
// (node/net/balance on package ebpf), and where that does not work by upstream's
// kube-proxy, in its nftables mode or, on a host without a usable nft, its
// iptables mode.
//
// Data flow: informers for Services, EndpointSlices, ServiceCIDRs and this Node
// feed the provider of the mode, which puts them into the kernel. Between them
// stands [wary], which knows from the members whom this node does not hear from.
// What is in the kernel outlives the process: a restart takes over what it finds,
// and no connection is dropped.
//
// Upstream's own main loop is not used: it never returns, exits the process when
// the Node's addresses change, opens ports of its own and sets conntrack sysctls,
// which fails in a network namespace. Health and metrics ports are off.
//
// [Proxy.Run] owns the informers and the provider's loop. The loop of kube-proxy
// has no way to stop and idles until the process ends, so Run may be called once
// in a process.
//
// It refuses IPVS.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/config"

	"github.com/mootkube/moot/node/net/balance"
)

// Mode is a way to put Services into the kernel.
type Mode string

// The modes.
const (
	Auto     Mode = "auto"     // the first of the others that can be used
	EBPF     Mode = "ebpf"     // needs cgroup v2 and a bpffs
	NFTables Mode = "nftables" // needs the nft program, 1.0.1 or later
	IPTables Mode = "iptables" // needs the iptables program
	None     Mode = "none"     // Services are somebody else's business
)

// Modes are all modes there are.
func Modes() []Mode { return []Mode{Auto, EBPF, NFTables, IPTables, None} }

// String is the mode as it is written.
func (m *Mode) String() string { return string(*m) }

// Type names the values of the flag.
func (m *Mode) Type() string { return "auto|ebpf|nftables|iptables|none" }

// Set reads a mode.
func (m *Mode) Set(s string) error {
	if !slices.Contains(Modes(), Mode(s)) {
		return errors.New("must be auto, ebpf, nftables, iptables or none")
	}
	*m = Mode(s)
	return nil
}

// Config is what the proxy is told.
type Config struct {
	NodeName     string
	NodeIPs      []netip.Addr
	ClusterCIDRs []netip.Prefix // pods, whose source address is kept
	Kubeconfig   string         // needs what the ClusterRole system:node-proxier grants
	Mode         Mode

	Pins    string                  // directory on a bpffs for what outlives the process
	NoTCX   bool                    // as on kernels before 6.6
	XDP     bool                    // lead packets from outside on in network drivers
	Overlay []string                // devices of the pod network between nodes
	Homes   []balance.Home          // Services that this daemon serves itself
	Doubts  func() map[string]Doubt // whom this node does not hear from, by name
	Changed <-chan struct{}         // says that Doubts may have changed
	Speaks  func() bool             // whether this node records what all see

	Log *slog.Logger
}

// DefaultConfig returns a configuration with the usual paths, for a node that
// doubts nobody.
func DefaultConfig() Config {
	return Config{
		Mode: Auto, Pins: "/sys/fs/bpf/moot",
		Doubts: func() map[string]Doubt { return nil }, Speaks: func() bool { return true },
		Log: slog.Default(),
	}
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name: not set"))
	}
	if len(c.NodeIPs) == 0 || len(c.ClusterCIDRs) == 0 {
		errs = append(errs, errors.New("node address or cluster CIDR: not set"))
	}
	for _, path := range []string{c.Kubeconfig, c.Pins} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("path %q: must be absolute", path))
		}
	}
	if !slices.Contains(Modes(), c.Mode) {
		errs = append(errs, fmt.Errorf("mode %q: must be one of %v", c.Mode, Modes()))
	}
	if c.Doubts == nil || c.Speaks == nil || c.Log == nil {
		errs = append(errs, errors.New("doubts, speaks or logger: not set"))
	}
	return errors.Join(errs...)
}

// Serving says how Services are served.
type Serving struct {
	Mode Mode   `json:"mode"`
	Why  string `json:"why,omitempty"` // why not a better mode
}

// Proxy is a Service proxy, not yet started.
type Proxy struct {
	cfg    Config
	client kubernetes.Interface

	mu       sync.Mutex
	balancer *balance.Proxier // while it serves
}

// New returns a proxy. It starts nothing and changes no rule.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check proxy settings: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read proxy kubeconfig: %w", err)
	}
	rest.ContentType = "application/vnd.kubernetes.protobuf"
	rest.AcceptContentTypes = rest.ContentType + ",application/json"
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, fmt.Errorf("build proxy client: %w", err)
	}
	return &Proxy{cfg: cfg, client: client}, nil
}

// Run proxies Services until ctx ends, and then returns nil. changed says that
// there may be other doubts; it may be nil. ready, which may be nil, is called
// once: when all Services known at the start are served. What is in the kernel
// stays when Run returns.
func (p *Proxy) Run(ctx context.Context, changed <-chan struct{}, ready func(Serving)) error {
	if p.cfg.Mode == None {
		removeOther(ctx, p.cfg, None)
		if ready != nil {
			ready(Serving{Mode: None})
		}
		<-ctx.Done()
		return nil
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: p.client.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record proxy events: %w", err)
	}
	plane, serving, err := p.newPlane(ctx, broadcaster.NewRecorder(scheme.Scheme, "kube-proxy"))
	if err != nil {
		return err
	}
	defer plane.close()
	removeOther(ctx, p.cfg, serving.Mode)
	provider := newWary(plane, plane.lost)
	synced := newSyncWatch(func() {
		if ready != nil {
			go func() { // the plane's own loop may have to do something first
				select {
				case <-plane.ready:
					ready(serving)
				case <-ctx.Done():
				}
			}()
		}
	})
	group, ctx := errgroup.WithContext(ctx)
	provider.doubt(p.cfg.Doubts())
	stopInformers := p.startInformers(ctx, provider, synced)
	defer stopInformers()
	group.Go(func() error { return plane.run(ctx) })
	group.Go(func() error {
		for {
			select {
			case <-changed:
				provider.doubt(p.cfg.Doubts())
			case <-ctx.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// SetServing says whether this daemon serves a home itself; its clients on this
// node are led here or elsewhere accordingly when it returns. With kube-proxy
// it changes nothing.
func (p *Proxy) SetServing(home types.NamespacedName, serving bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.cfg.Homes {
		if p.cfg.Homes[i].Service == home {
			p.cfg.Homes[i].Serving = serving // for a plane that is still to come
		}
	}
	if p.balancer == nil {
		return nil
	}
	return p.balancer.SetServing(home, serving)
}

// HandOver leads the clients of all homes to other nodes, before this daemon
// stops to serve them.
func (p *Proxy) HandOver() error {
	var errs []error
	for _, home := range p.cfg.Homes {
		errs = append(errs, p.SetServing(home.Service, false))
	}
	return errors.Join(errs...)
}

// startInformers feeds the proxier until ctx ends; the function it returns waits
// for the informers to be gone.
func (p *Proxy) startInformers(ctx context.Context, proxier proxy.Provider, synced *syncWatch) (wait func()) {
	const resync = 15 * time.Minute
	trim := informers.WithTransform(trimManagedFields)
	plain := informers.NewSharedInformerFactoryWithOptions(p.client, resync, trim)
	services := informers.NewSharedInformerFactoryWithOptions(p.client, resync, trim,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = "!service.kubernetes.io/service-proxy-name"
			o.FieldSelector = fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String()
		}))
	endpoints := informers.NewSharedInformerFactoryWithOptions(p.client, resync, trim,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + corev1.IsHeadlessService
		}))
	self := informers.NewSharedInformerFactoryWithOptions(p.client, resync, trim,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, p.cfg.NodeName).String()
		}))

	serviceConfig := config.NewServiceConfig(ctx, services.Core().V1().Services(), resync)
	serviceConfig.RegisterEventHandler(proxier)
	serviceConfig.RegisterEventHandler(synced)
	sliceConfig := config.NewEndpointSliceConfig(ctx, endpoints.Discovery().V1().EndpointSlices(), resync)
	sliceConfig.RegisterEventHandler(proxier)
	sliceConfig.RegisterEventHandler(synced)
	cidrConfig := config.NewServiceCIDRConfig(ctx, plain.Networking().V1().ServiceCIDRs(), resync)
	cidrConfig.RegisterEventHandler(proxier)
	topologyConfig := config.NewNodeTopologyConfig(ctx, self.Core().V1().Nodes(), resync)
	topologyConfig.RegisterEventHandler(proxier)

	factories := []informers.SharedInformerFactory{plain, services, endpoints, self}
	for _, f := range factories {
		f.Start(ctx.Done())
	}
	var feeders sync.WaitGroup
	feeders.Go(func() { serviceConfig.Run(ctx.Done()) })
	feeders.Go(func() { sliceConfig.Run(ctx.Done()) })
	feeders.Go(func() { cidrConfig.Run(ctx.Done()) })
	return func() {
		feeders.Wait()
		for _, f := range factories {
			f.Shutdown()
		}
	}
}

func trimManagedFields(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return obj, nil
}
