package net

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	settle   = 50 * time.Millisecond // changes within this time are handled as one
	resync   = 30 * time.Second      // everything is compared at least this often
	retry    = 2 * time.Second       // after something could not be set
	waitLong = 10 * time.Second      // a node without a pod network for this long is worth a line
)

// Network is what a node's pods live in.
type Network struct {
	PodCIDRs []netip.Prefix // the node's own
	Gateways []netip.Addr   // of each, on this node; DNS listens there
}

// Agent keeps one node's pod network.
type Agent struct {
	cfg    Config
	client kubernetes.Interface
}

// New returns an agent. It starts nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check network settings: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read network kubeconfig: %w", err)
	}
	rest.ContentType = "application/vnd.kubernetes.protobuf"
	rest.AcceptContentTypes = rest.ContentType + ",application/json"
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, fmt.Errorf("build network client: %w", err)
	}
	return &Agent{cfg: cfg, client: client}, nil
}

// Run keeps the network until ctx ends, and then returns nil. ready, which may
// be nil, is called once: when the node has a pod network and the plugin is
// configured. What was set stays when Run returns, for the pods that run on.
func (a *Agent) Run(ctx context.Context, ready func(Network)) error {
	trigger := make(chan struct{}, 1)
	poke := func() {
		select {
		case trigger <- struct{}{}:
		default: // one is waiting already, and will see this change too
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(a.client, 0, informers.WithTransform(slimNode))
	nodes := factory.Core().V1().Nodes()
	if _, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { poke() },
		UpdateFunc: func(before, after any) {
			if nodeChanged(before, after) {
				poke()
			}
		},
		DeleteFunc: func(any) { poke() },
	}); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	group.Go(func() error { return a.watchRoutes(ctx, poke) })
	group.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
			return nil
		}
		return a.loop(ctx, nodes.Lister(), trigger, ready)
	})
	return group.Wait()
}

// loop reconciles on every trigger, and now and then without one.
func (a *Agent) loop(ctx context.Context, nodes listers.NodeLister, trigger <-chan struct{}, ready func(Network)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	started, told := time.Now(), ""
	warned, pending := false, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-trigger:
			if !pending { // not again: a steady stream of changes must not put it off for ever
				timer.Reset(settle)
			}
			pending = true
			continue
		case <-timer.C:
			pending = false
		}
		network, err := a.reconcile(ctx, nodes)
		switch {
		case err != nil:
			if told != err.Error() { // the same again every few seconds says nothing new
				a.cfg.Log.Warn("pod network not as it should be, trying again", "err", err)
			}
			told = err.Error()
			timer.Reset(retry)
		case len(network.PodCIDRs) == 0:
			if !warned && time.Since(started) > waitLong {
				warned = true
				a.cfg.Log.Warn("node has no pod network yet: the controllers have not given it one")
			}
			timer.Reset(waitLong)
			continue
		default:
			told = ""
			timer.Reset(resync)
		}
		if ready != nil && len(network.PodCIDRs) > 0 {
			a.cfg.Log.Info("pod network ready", "podCIDRs", network.PodCIDRs, "gateways", network.Gateways)
			ready(network)
			ready = nil
		}
	}
}

// reconcile makes host and plugin match the Nodes. The network it returns is
// usable even when there is an error: then traffic does not get everywhere.
func (a *Agent) reconcile(ctx context.Context, nodes listers.NodeLister) (Network, error) {
	list, err := nodes.List(labels.Everything())
	if err != nil {
		return Network{}, fmt.Errorf("list nodes: %w", err)
	}
	peers := make([]peer, 0, len(list))
	for _, n := range list {
		peers = append(peers, peerOf(n))
	}
	plan := planRoutes(a.cfg.NodeName, peers)
	for _, c := range plan.clashes {
		a.cfg.Log.Error("two nodes claim one pod network, the older has it", "cidr", c.cidr, "winner", c.winner, "loser", c.lost)
	}
	if len(plan.own) == 0 {
		return Network{}, nil
	}
	network := Network{PodCIDRs: plan.own}
	for _, cidr := range plan.own {
		if err := setForwarding(cidr.Addr().Is6()); err != nil {
			return Network{}, err
		}
		network.Gateways = append(network.Gateways, gatewayOf(cidr))
	}
	if err := setGateway(a.cfg.ClusterCIDR, network.Gateways); err != nil {
		return Network{}, err
	}
	// Not being able to reach other nodes' pods does not keep one's own from
	// running.
	errs := []error{syncRoutes(plan.routes)}
	if blocked, err := allowForwarding(ctx, a.cfg.ClusterCIDR); err != nil {
		errs = append(errs, err)
	} else if len(blocked) > 0 {
		errs = append(errs, fmt.Errorf("pod traffic is dropped by the host's firewall (%s): let it pass %s",
			strings.Join(blocked, ", "), a.cfg.ClusterCIDR))
	}
	if err := a.writeConflist(plan.own); err != nil {
		return Network{}, err
	}
	return network, errors.Join(errs...)
}

func syncRoutes(want map[netip.Prefix]netip.Addr) error {
	have, err := ourRoutes()
	if err != nil {
		return err
	}
	return applyRoutes(diffRoutes(want, have))
}

func (a *Agent) writeConflist(own []netip.Prefix) error {
	mtu := a.cfg.MTU
	if mtu == 0 {
		var err error
		if mtu, err = mtuOf(a.cfg.NodeIP); err != nil {
			return err
		}
	}
	conf, err := buildConflist(own, a.cfg.ClusterCIDR, mtu, a.cfg.CNIDataDir)
	if err != nil {
		return err
	}
	if err := replaceFile(a.cfg.CNIConfFile, conf); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	return nil
}

// watchRoutes pokes when routes come and go: the kernel drops those of an
// interface that goes down, a restart of the host's network service takes the
// gateway address, and with an interface that comes up a route that was refused
// before may do.
func (a *Agent) watchRoutes(ctx context.Context, poke func()) error {
	updates := make(chan netlink.RouteUpdate, 64)
	err := netlink.RouteSubscribeWithOptions(updates, ctx.Done(), netlink.RouteSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				a.cfg.Log.Warn("routing changes not seen, comparing periodically", "err", err)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch routing table: %w", err)
	}
	for update := range updates { // closed when ctx ends
		if update.Type == unix.RTM_DELROUTE || update.Protocol != routeProtocol {
			poke() // anything but a route that we set
		}
	}
	<-ctx.Done()
	return nil
}

// slimNode drops what the agent never reads before it is cached.
func slimNode(obj any) (any, error) {
	if node, ok := obj.(*corev1.Node); ok {
		node.ManagedFields, node.Annotations, node.Labels = nil, nil, nil
		node.Status = corev1.NodeStatus{Addresses: node.Status.Addresses}
	}
	return obj, nil
}

func nodeChanged(before, after any) bool {
	b, ok1 := before.(*corev1.Node)
	n, ok2 := after.(*corev1.Node)
	if !ok1 || !ok2 {
		return true
	}
	return !slices.Equal(b.Spec.PodCIDRs, n.Spec.PodCIDRs) || b.Spec.PodCIDR != n.Spec.PodCIDR ||
		!slices.Equal(b.Status.Addresses, n.Status.Addresses)
}

// Cleanup takes back what an agent set on this host: routes, the gateway
// address, firewall rules and the plugin's configuration. Pods must be gone.
func Cleanup(ctx context.Context, cfg Config) error {
	errs := []error{syncRoutes(nil), setGateway(cfg.ClusterCIDR, nil), forbidForwarding(ctx, cfg.ClusterCIDR)}
	if err := os.Remove(cfg.CNIConfFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove CNI configuration: %w", err))
	}
	return errors.Join(errs...)
}
