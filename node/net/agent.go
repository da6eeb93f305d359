package net

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
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

	"github.com/mootkube/moot/node/net/host"
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

	networks atomic.Pointer[map[string][]netip.Prefix]

	// The rest is the loop's.
	told    string             // the last message on the Node
	moving  bool               // pods may have addresses of networks given up
	faraway map[netip.Addr]way // how nodes were reached when last known
	guarded string             // what the guard holds
	cleared bool               // nothing of another mode is left
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
	return &Agent{cfg: cfg, client: client, moving: true, faraway: map[netip.Addr]way{}}, nil
}

// Run keeps the network until ctx ends, and then returns nil. ready, which may
// be nil, is called when the node has a pod network and the plugin is
// configured, and again when it has another one. What was set stays when Run
// returns, for the pods that run on.
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
	var said Network
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
		case errors.Is(err, errMoving):
			timer.Reset(retry)
		case err != nil:
			if told != err.Error() { // the same again every few seconds says nothing new
				a.cfg.Log.Warn("pod network not as it should be, trying again", "err", err)
			}
			told = err.Error()
			timer.Reset(retry)
		case len(network.PodCIDRs) == 0:
			if !warned && time.Since(started) > waitLong {
				warned = true
				a.cfg.Log.Warn("node has no pod network yet: its kubelet has not registered it, or no network is free")
			}
			timer.Reset(waitLong)
			continue
		default:
			told = ""
			timer.Reset(resync)
		}
		if ready != nil && len(network.PodCIDRs) > 0 && !slices.Equal(network.PodCIDRs, said.PodCIDRs) {
			a.cfg.Log.Info("pod network ready", "podCIDRs", network.PodCIDRs, "gateways", network.Gateways)
			ready(network)
			said = network
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
	claimed := a.claimNetworks(ctx, list, peers)
	networks := networksOf(peers, a.cfg.Mode)
	a.networks.Store(&networks)
	plan := a.terrain().plan(peers)
	for _, c := range plan.clashes {
		if c.lost != a.cfg.NodeName {
			a.cfg.Log.Warn("two nodes claim one pod network, the older has it until the younger takes another", "cidr", c.cidr, "winner", c.winner, "loser", c.lost)
		}
	}
	if len(plan.own) == 0 {
		return Network{}, claimed
	}
	network := Network{PodCIDRs: plan.own}
	if a.cfg.Mode == ModeNone {
		network.Gateways = a.cfg.NodeIPs // there is no other address that is ours
		if !a.cleared {
			if err := Cleanup(ctx, a.cfg); err != nil {
				return network, errors.Join(claimed, err)
			}
			a.cleared = true
		}
		return network, claimed
	}
	for _, cidr := range plan.own {
		if err := host.Forward(cidr.Addr().Is6()); err != nil {
			return Network{}, err
		}
		network.Gateways = append(network.Gateways, gatewayOf(cidr))
	}
	if err := setGateway(a.cfg.ClusterCIDRs, network.Gateways); err != nil {
		return Network{}, err
	}
	// Not being able to reach other nodes' pods does not keep one's own from
	// running.
	errs := []error{claimed, a.connect(plan), host.Masquerade(plan.own, a.cfg.ClusterCIDRs)}
	for _, cluster := range a.cfg.ClusterCIDRs {
		if blocked, err := allowForwarding(ctx, cluster); err != nil {
			errs = append(errs, err)
		} else if len(blocked) > 0 {
			errs = append(errs, fmt.Errorf("pod traffic is dropped by the host's firewall (%s): let it pass %s",
				strings.Join(blocked, ", "), cluster))
		}
	}
	if err := a.writeConflist(plan); err != nil {
		return Network{}, err
	}
	moved := a.remakePods(ctx, plan.own)
	if err := errors.Join(errs...); err != nil {
		return network, err
	}
	return network, moved
}

// Networks tells for each node where it and its pods have their addresses, as
// far as that is known yet. What it returns must not be changed.
func (a *Agent) Networks() map[string][]netip.Prefix {
	if networks := a.networks.Load(); networks != nil {
		return *networks
	}
	return nil
}

func (a *Agent) terrain() terrain {
	return terrain{self: a.cfg.NodeName, mode: a.cfg.Mode, underlay6: a.cfg.local().Is6(), ways: a.way}
}

// way tells how another node is reached. While there is no way at all it is
// what it was before: a cable that is pulled for a moment changes nothing.
func (a *Agent) way(ip netip.Addr) way {
	if w, known := wayTo(ip); known {
		a.faraway[ip] = w
	}
	return a.faraway[ip]
}

// connect makes overlay and routes what the plan says. The overlay is there
// only while a node is reached through it.
func (a *Agent) connect(plan routePlan) error {
	device := 0
	var errs []error
	if len(plan.tunnels) == 0 {
		a.guarded = ""
		errs = append(errs, removeOverlay(), removeGuard())
	} else {
		mtu, err := a.linkMTU()
		if err != nil {
			return err
		}
		// Nothing is let in before it is known who may.
		if err := a.guard(plan.members); err != nil {
			return err
		}
		o := overlay{local: a.cfg.local(), port: a.cfg.OverlayPort, mtu: mtu - overhead(a.cfg.local().Is6())}
		for _, cidr := range plan.own {
			o.gateways = append(o.gateways, gatewayOf(cidr))
		}
		if device, err = o.sync(plan.tunnels); device == 0 {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, syncRoutes(plan.routes, device))...)
}

func (a *Agent) guard(members []netip.Addr) error {
	want := fmt.Sprint(members, a.cfg.OverlayPort)
	if there, err := hasGuard(); err != nil || there && a.guarded == want {
		return err
	}
	if err := syncGuard(members, a.cfg.OverlayPort); err != nil {
		return err
	}
	a.guarded = want
	return nil
}

func syncRoutes(want map[netip.Prefix]hop, device int) error {
	have, err := ourRoutes(device)
	if err != nil {
		return err
	}
	set, remove := diffRoutes(want, have)
	return applyRoutes(set, remove, device)
}

// linkMTU is the MTU outside the overlay.
func (a *Agent) linkMTU() (int, error) {
	if a.cfg.MTU != 0 {
		return a.cfg.MTU, nil
	}
	return mtuOf(a.cfg.local())
}

// writeConflist configures the plugin. Pods' interfaces fit through the overlay
// when there is one; those that were made before there was are told by the
// kernel what fits, as any router tells it.
func (a *Agent) writeConflist(plan routePlan) error {
	mtu, err := a.linkMTU()
	if err != nil {
		return err
	}
	if len(plan.tunnels) > 0 {
		mtu -= overhead(a.cfg.local().Is6())
	}
	conf, err := buildConflist(plan.own, a.cfg.ClusterCIDRs, mtu, a.cfg.CNIDataDir)
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

// Cleanup takes back what an agent set on this host: routes, the overlay with
// its table, the gateway address, firewall rules and the plugin's configuration.
// Pods must be gone, or have another plugin's network.
func Cleanup(ctx context.Context, cfg Config) error {
	errs := []error{syncRoutes(nil, 0), removeOverlay(), removeGuard(), setGateway(cfg.ClusterCIDRs, nil), host.Clear()}
	for _, cluster := range cfg.ClusterCIDRs {
		errs = append(errs, forbidForwarding(ctx, cluster))
	}
	if err := os.Remove(cfg.CNIConfFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove CNI configuration: %w", err))
	}
	return errors.Join(errs...)
}
