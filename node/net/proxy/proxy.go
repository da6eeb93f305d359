// Package proxy runs upstream's Service proxy inside the daemon: kube-proxy's
// nftables mode, or its iptables mode on a host without a usable nft.
//
// Data flow: informers for Services, EndpointSlices, ServiceCIDRs and this Node
// feed upstream's proxier, which turns them into kernel rules, one transaction a
// change. The rules outlive the process: a restart takes over what it finds, and
// no connection is dropped.
//
// Upstream's own main loop is not used: it never returns, exits the process when
// the Node's addresses change, opens ports of its own and sets conntrack sysctls,
// which fails in a network namespace. Health and metrics ports are off.
//
// [Proxy.Run] owns the informers. The proxier's timer loop has no way to stop
// and idles until the process ends, so Run may be called once in a process.
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
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/proxy"
	proxyconfigscheme "k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/config"
)

// Mode is a way to put Services into the kernel.
type Mode string

// The modes.
const (
	Auto     Mode = ""         // nftables if it can be used, else iptables
	NFTables Mode = "nftables" // needs the nft program, 1.0.1 or later
	IPTables Mode = "iptables" // needs the iptables program
)

// Config is what the proxy is told.
type Config struct {
	NodeName    string
	NodeIP      netip.Addr
	ClusterCIDR netip.Prefix // pods, whose source address is kept
	Kubeconfig  string       // needs what the ClusterRole system:node-proxier grants
	Mode        Mode
	Log         *slog.Logger
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name: not set"))
	}
	if !c.NodeIP.IsValid() || !c.ClusterCIDR.IsValid() {
		errs = append(errs, errors.New("node address or cluster CIDR: not set"))
	}
	if !filepath.IsAbs(c.Kubeconfig) {
		errs = append(errs, fmt.Errorf("kubeconfig %q: must be an absolute path", c.Kubeconfig))
	}
	switch c.Mode {
	case Auto, NFTables, IPTables:
	default:
		errs = append(errs, fmt.Errorf("mode %q: must be nftables or iptables", c.Mode))
	}
	if c.Log == nil {
		errs = append(errs, errors.New("logger: not set"))
	}
	return errors.Join(errs...)
}

// Proxy is a Service proxy, not yet started.
type Proxy struct {
	cfg    Config
	client kubernetes.Interface
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

// Run proxies Services until ctx ends, and then returns nil. ready, which may be
// nil, is called once: when the rules for all Services known at the start are in
// the kernel. The rules stay when Run returns.
func (p *Proxy) Run(ctx context.Context, ready func(mode Mode)) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: p.client.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record proxy events: %w", err)
	}
	proxier, mode, err := p.newProxier(ctx, broadcaster.NewRecorder(proxyconfigscheme.Scheme, "kube-proxy"))
	if err != nil {
		return err
	}
	removeOther(ctx, mode)
	synced := newSyncWatch(func() {
		if ready != nil {
			ready(mode)
		}
	})
	stopInformers := p.startInformers(ctx, proxier, synced)
	defer stopInformers()
	go proxier.SyncLoop()
	<-ctx.Done()
	return nil
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
	slices := informers.NewSharedInformerFactoryWithOptions(p.client, resync, trim,
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
	sliceConfig := config.NewEndpointSliceConfig(ctx, slices.Discovery().V1().EndpointSlices(), resync)
	sliceConfig.RegisterEventHandler(proxier)
	sliceConfig.RegisterEventHandler(synced)
	cidrConfig := config.NewServiceCIDRConfig(ctx, plain.Networking().V1().ServiceCIDRs(), resync)
	cidrConfig.RegisterEventHandler(proxier)
	topologyConfig := config.NewNodeTopologyConfig(ctx, self.Core().V1().Nodes(), resync)
	topologyConfig.RegisterEventHandler(proxier)

	factories := []informers.SharedInformerFactory{plain, services, slices, self}
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
