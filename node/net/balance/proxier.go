package balance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/mootkube/moot/ebpf"
)

// retry is the pause after something could not be applied.
const retry = time.Second

// kernel is the part of [ebpf.Balancer] that is used.
type kernel interface {
	Apply(set map[ebpf.Frontend]ebpf.Service, gone []ebpf.Frontend) error
	Resync(want map[ebpf.Frontend]ebpf.Service) error
	Disconnect(ctx context.Context, gone []ebpf.Target) (int, error)
	hostKernel
}

// Proxier is a proxy.Provider on an [ebpf.Balancer].
type Proxier struct {
	cfg     Config
	kernel  kernel
	kick    chan struct{}
	stepped chan struct{}

	mu       sync.Mutex // guards the rest
	families []*family
	objects  map[types.NamespacedName]*corev1.Service
	dirty    sets.Set[types.NamespacedName]
	all      bool // everything is to be planned anew
	homes    map[types.NamespacedName]*homeward
	labels   map[string]string
	table    *table
	known    map[types.NamespacedName]endpoints
	refused  map[types.UID]bool // Services with a protocol that is not balanced, told of
	broken   []ebpf.Target      // whose sockets are to be destroyed
	// The kernel holds what was served before until both kinds are complete.
	servicesIn, slicesIn bool
	running              bool
	err                  error // of the last time

	started chan struct{} // closed when the kernel holds all Services
	ready   chan struct{} // closed when it serves them on the host's devices, too
}

// family is what upstream's trackers hold of one address family.
type family struct {
	ipv6     bool
	services *proxy.ServiceChangeTracker
	slices   *proxy.EndpointsChangeTracker
	ports    proxy.ServicePortMap
	ends     proxy.EndpointsMap
	health   healthcheck.ServiceHealthServer
}

var _ proxy.Provider = (*Proxier)(nil)

// New returns a proxier on an open balancer. It starts nothing.
func New(cfg Config, k *ebpf.Balancer) (*Proxier, error) { return newProxier(cfg, k) }

func newProxier(cfg Config, k kernel) (*Proxier, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p := &Proxier{
		cfg: cfg, kernel: k, kick: make(chan struct{}, 1), stepped: make(chan struct{}, 1),
		objects: map[types.NamespacedName]*corev1.Service{}, dirty: sets.New[types.NamespacedName](), all: true,
		homes: map[types.NamespacedName]*homeward{}, table: newTable(),
		known: map[types.NamespacedName]endpoints{}, refused: map[types.UID]bool{},
		started: make(chan struct{}), ready: make(chan struct{}),
	}
	for _, h := range cfg.Homes {
		p.homes[h.Service] = &homeward{own: h.Own, addrs: cfg.NodeIPs, away: !h.Serving}
	}
	for _, f := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		p.families = append(p.families, &family{
			ipv6:     f == corev1.IPv6Protocol,
			services: proxy.NewServiceChangeTracker(f, nil, nil),
			slices:   proxy.NewEndpointsChangeTracker(f, cfg.NodeName, nil, nil),
			ports:    proxy.ServicePortMap{},
			ends:     proxy.EndpointsMap{},
			health: healthcheck.NewServiceHealthServer(cfg.NodeName, cfg.Recorder,
				proxyutil.NewNodePortAddresses(f, nil), p, f),
		})
	}
	return p, nil
}

// Run applies changes until ctx ends, and then returns nil. What the kernel holds
// stays.
func (p *Proxier) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-p.started:
		case <-ctx.Done():
			return nil
		}
		return watchHost(ctx, p.kernel, p.cfg.Overlay, p.cfg.Log, sync.OnceFunc(func() { close(p.ready) }))
	})
	group.Go(func() error { return p.loop(ctx) })
	group.Go(func() error { return p.endConnections(ctx) })
	return group.Wait()
}

// Ready is closed once all Services known at the start are served.
func (p *Proxier) Ready() <-chan struct{} { return p.ready }

func (p *Proxier) loop(ctx context.Context) error {
	timer := time.NewTimer(retry)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.kick:
		case <-timer.C:
		}
		timer.Stop()
		if err := p.step(); err != nil {
			timer.Reset(retry)
		}
		select {
		case p.stepped <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// endConnections destroys, after each step, what is to be. It may have to look
// through many sockets, and no change of a Service waits for that.
func (p *Proxier) endConnections(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.stepped:
			p.disconnect(ctx)
		}
	}
}

// step applies what has changed, once everything is known.
func (p *Proxier) step() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		return nil
	}
	return p.syncLocked()
}

// start applies everything for the first time, when both kinds are complete.
func (p *Proxier) start(mark *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*mark = true
	if p.running || !p.servicesIn || !p.slicesIn {
		return
	}
	p.running = true
	_ = p.syncLocked() // told, and tried again by the loop
	close(p.started)
	p.wake()
}

func (p *Proxier) syncLocked() error {
	first := p.all && len(p.table.plans) == 0
	p.takeInLocked()
	c := newChange()
	var over []ebpf.Target
	for name := range p.dirty {
		p.table.put(name, p.planLocked(name), c)
		over = append(over, p.lookLocked(name)...)
	}
	p.broken = append(p.broken, stillServed(over, p.known)...)
	err := p.apply(first || p.err != nil, c)
	switch {
	case err != nil && (p.err == nil || p.err.Error() != err.Error()):
		p.cfg.Log.Error("Services are not all served as they should be, trying again", "err", err)
	case err == nil && p.err != nil:
		p.cfg.Log.Info("Services are served as they should be again")
	}
	p.dirty, p.all, p.err = sets.New[types.NamespacedName](), false, err
	p.answerHealthLocked()
	return err
}

// apply tells the kernel the change, or after a failure everything.
func (p *Proxier) apply(everything bool, c change) error {
	if everything {
		return p.kernel.Resync(p.table.all())
	}
	if c.empty() {
		return nil
	}
	return p.kernel.Apply(c.set, slices.Collect(maps.Keys(c.gone)))
}

// takeInLocked takes from the trackers what changed, and marks it.
func (p *Proxier) takeInLocked() {
	for _, f := range p.families {
		p.dirty = p.dirty.Union(f.ports.Update(f.services).UpdatedServices)
		p.dirty = p.dirty.Union(f.ends.Update(f.slices).UpdatedServices)
	}
	if p.all {
		for name := range p.objects {
			p.dirty.Insert(name)
		}
	}
}

// planLocked plans all ports of a Service in both families.
func (p *Proxier) planLocked(name types.NamespacedName) servicePlan {
	svc := p.objects[name]
	if svc == nil {
		return servicePlan{}
	}
	out := servicePlan{created: svc.CreationTimestamp.Time, frontends: map[ebpf.Frontend]ebpf.Service{}}
	for _, port := range svc.Spec.Ports {
		key := proxy.ServicePortName{NamespacedName: name, Port: port.Name, Protocol: port.Protocol}
		for _, f := range p.families {
			if info := f.ports[key]; info != nil {
				at := place{node: p.cfg.NodeName, labels: p.labels, ipv6: f.ipv6, home: p.homes[name]}
				maps.Copy(out.frontends, plan(key, info, f.ends[key], at))
			}
		}
	}
	return out
}

// lookLocked notes how the Service's endpoints are, and returns those that have
// ended.
func (p *Proxier) lookLocked(name types.NamespacedName) []ebpf.Target {
	now := endpoints{}
	for _, port := range p.portsLocked(name) {
		protocol, ok := protocolOf(port.Protocol)
		if !ok {
			continue
		}
		for _, f := range p.families {
			now.add(protocol, f.ends[port])
		}
	}
	over := ended(p.known[name], now)
	if len(now) == 0 {
		delete(p.known, name)
	} else {
		p.known[name] = now
	}
	return over
}

func (p *Proxier) portsLocked(name types.NamespacedName) []proxy.ServicePortName {
	svc := p.objects[name]
	if svc == nil {
		return nil
	}
	var out []proxy.ServicePortName
	for _, port := range svc.Spec.Ports {
		out = append(out, proxy.ServicePortName{NamespacedName: name, Port: port.Name, Protocol: port.Protocol})
	}
	return out
}

// Disconnect destroys the sockets that Services led to the targets, or of them
// those that are opening, once what is known by now has been applied: who tries
// again at once is led elsewhere. It does not block.
func (p *Proxier) Disconnect(targets []ebpf.Target) {
	p.mu.Lock()
	p.broken = append(p.broken, targets...)
	p.mu.Unlock()
	p.wake()
}

func (p *Proxier) disconnect(ctx context.Context) {
	p.mu.Lock()
	targets := p.broken
	p.broken = nil
	p.mu.Unlock()
	if len(targets) == 0 {
		return
	}
	n, err := p.kernel.Disconnect(ctx, targets)
	if err != nil && ctx.Err() == nil {
		p.cfg.Log.Warn("connections to backends that are gone or silent may linger", "err", err)
	}
	if n > 0 {
		p.cfg.Log.Info("connections to backends that are gone or silent were ended", "connections", n, "backends", len(targets))
	}
}

// SetServing says whether this daemon serves the home itself. It returns once the
// kernel leads accordingly, or with the reason why it does not.
func (p *Proxier) SetServing(home types.NamespacedName, serving bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.homes[home]
	if h == nil {
		return fmt.Errorf("balance: %s is no home", home)
	}
	if h.away == !serving {
		return nil
	}
	h.away = !serving
	p.dirty.Insert(home)
	if !p.running {
		return nil
	}
	err := p.syncLocked()
	if err != nil {
		p.wake() // for the loop to try again
	}
	return err
}

// HandOver leads the clients of all homes to other nodes.
func (p *Proxier) HandOver() error {
	var errs []error
	for _, h := range p.cfg.Homes {
		errs = append(errs, p.SetServing(h.Service, false))
	}
	return errors.Join(errs...)
}

// Sync is part of proxy.Provider.
func (p *Proxier) Sync() { p.wake() }

// SyncLoop is part of proxy.Provider. The work is [Proxier.Run]'s.
func (p *Proxier) SyncLoop() {}

func (p *Proxier) wake() {
	select {
	case p.kick <- struct{}{}:
	default: // it will see this change too
	}
}

// OnServiceAdd is part of proxy.Provider.
func (p *Proxier) OnServiceAdd(s *corev1.Service) { p.OnServiceUpdate(nil, s) }

// OnServiceDelete is part of proxy.Provider.
func (p *Proxier) OnServiceDelete(s *corev1.Service) { p.OnServiceUpdate(s, nil) }

// OnServiceUpdate is part of proxy.Provider.
func (p *Proxier) OnServiceUpdate(before, after *corev1.Service) {
	p.mu.Lock()
	if after == nil {
		name := types.NamespacedName{Namespace: before.Namespace, Name: before.Name}
		delete(p.objects, name)
		delete(p.refused, before.UID)
		p.dirty.Insert(name)
	} else {
		name := types.NamespacedName{Namespace: after.Namespace, Name: after.Name}
		p.objects[name] = after
		if before != nil && before.UID != after.UID {
			p.dirty.Insert(name) // its age is another
		}
	}
	p.mu.Unlock()
	for _, f := range p.families {
		f.services.Update(before, after)
	}
	if after != nil {
		p.tellRefused(after)
	}
	p.wake()
}

// tellRefused records on a Service that a protocol of its is not balanced.
func (p *Proxier) tellRefused(s *corev1.Service) {
	for _, port := range s.Spec.Ports {
		if _, ok := protocolOf(port.Protocol); ok || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		p.mu.Lock()
		told := p.refused[s.UID]
		p.refused[s.UID] = true
		p.mu.Unlock()
		if !told && p.cfg.Speaks() {
			p.cfg.Recorder.Eventf(s, nil, corev1.EventTypeWarning, "ProtocolNotBalanced", "Balance",
				"port %d: %s is not balanced in the kernel; use a headless Service, or start the nodes with --service-proxy nftables", port.Port, port.Protocol)
		}
	}
}

// OnServiceSynced is part of proxy.Provider.
func (p *Proxier) OnServiceSynced() { p.start(&p.servicesIn) }

// OnEndpointSliceAdd is part of proxy.Provider.
func (p *Proxier) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) { p.takeSlice(s, false) }

// OnEndpointSliceUpdate is part of proxy.Provider.
func (p *Proxier) OnEndpointSliceUpdate(_, s *discoveryv1.EndpointSlice) { p.takeSlice(s, false) }

// OnEndpointSliceDelete is part of proxy.Provider.
func (p *Proxier) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) { p.takeSlice(s, true) }

// OnEndpointSlicesSynced is part of proxy.Provider.
func (p *Proxier) OnEndpointSlicesSynced() { p.start(&p.slicesIn) }

func (p *Proxier) takeSlice(s *discoveryv1.EndpointSlice, gone bool) {
	changed := false
	for _, f := range p.families {
		changed = f.slices.EndpointSliceUpdate(s, gone) || changed
	}
	if changed {
		p.wake()
	}
}

// OnTopologyChange is part of proxy.Provider.
func (p *Proxier) OnTopologyChange(labels map[string]string) {
	p.mu.Lock()
	p.labels, p.all = labels, true
	p.mu.Unlock()
	p.wake()
}

// OnServiceCIDRsChanged is part of proxy.Provider. Addresses that no Service has
// are nothing here.
func (p *Proxier) OnServiceCIDRsChanged([]string) {}

// Health is what the Services' health check ports answer for this node.
func (p *Proxier) Health() healthcheck.ProxyHealth {
	p.mu.Lock()
	defer p.mu.Unlock()
	return healthcheck.ProxyHealth{Healthy: p.running && p.err == nil}
}

// answerHealthLocked keeps the health check ports of Services.
func (p *Proxier) answerHealthLocked() {
	for _, f := range p.families {
		ports := f.ports.HealthCheckNodePorts()
		err := f.health.SyncServices(ports)
		if len(ports) > 0 {
			err = errors.Join(err, f.health.SyncEndpoints(f.ends.LocalReadyEndpoints()))
		}
		if err != nil {
			p.cfg.Log.Warn("health check ports of Services are not all served", "err", err)
		}
	}
}
