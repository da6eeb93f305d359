package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/pkg/apis/core"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/pkg/registry/core/service/allocator"
	allocatorstorage "k8s.io/kubernetes/pkg/registry/core/service/allocator/storage"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
)

const (
	// serviceRepairHook is upstream's. It repairs addresses, which is for the
	// leader to do, and ports, in the bitmap that a cluster shares there.
	serviceRepairHook = "start-service-ip-repair-controllers"
	// portsHook is ours in its place.
	portsHook = "moot-service-ports"

	portsKey     = "/ranges/servicenodeports"
	portsCheck   = 3 * time.Minute  // how often ports are compared unasked
	portsRetry   = 5 * time.Second  // after a failure
	portsIdle    = 3 * time.Second  // a port is given out before its Service is stored
	portsStartup = 30 * time.Second // how long a start waits for the first comparison
)

// ports keeps the node's bitmap of the node ports in use in step with the
// Services of the whole cluster. Every API server gives out ports by a bitmap
// of its own, which knows only what it gave out itself; upstream compares every
// few minutes, and until then a port that a Service of another node has would
// be given out again.
type ports struct {
	services corelisters.ServiceLister
	synced   cache.InformerSynced
	changed  chan struct{}
	all      utilnet.PortRange
	stored   *allocatorstorage.Etcd
	bitmap   *portallocator.PortAllocator // over stored
	idle     map[int]time.Time            // since when no Service has a port that is given out
}

// newPorts takes the place of upstream's repair. It keeps a connection to the
// store until it has run.
func newPorts(config *app.Config) (*ports, error) {
	config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks.Insert(serviceRepairHook)
	informer := config.KubeAPIs.ControlPlane.VersionedInformers.Core().V1().Services()
	p := &ports{
		services: informer.Lister(), synced: informer.Informer().HasSynced, changed: make(chan struct{}, 1),
		all: config.KubeAPIs.ServiceNodePortRange, idle: map[int]time.Time{},
	}
	if p.all.Size == 0 {
		p.all = kubeoptions.DefaultServiceNodePortRange
	}
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { p.signal() }, UpdateFunc: func(any, any) { p.signal() }, DeleteFunc: func(any) { p.signal() },
	})
	if err != nil {
		return nil, fmt.Errorf("follow Services: %w", err)
	}
	storage, err := config.KubeAPIs.ControlPlane.StorageFactory.NewConfig(core.Resource("services"), &core.Service{})
	if err != nil {
		return nil, fmt.Errorf("store ports: %w", err)
	}
	p.bitmap, err = portallocator.New(p.all, func(size int, spec string, offset int) (allocator.Interface, error) {
		p.stored, err = allocatorstorage.NewEtcd(allocator.NewAllocationMapWithOffset(size, spec, offset), portsKey,
			storage.ForResource(core.Resource("servicenodeportallocations")))
		return p.stored, err
	})
	if err != nil {
		return nil, fmt.Errorf("store ports: %w", err)
	}
	return p, nil
}

func (p *ports) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// hook starts the work and waits, for a bounded time, for a first success, so
// that a ready server gives out no port twice.
func (p *ports) hook(hook genericapiserver.PostStartHookContext) error {
	first := make(chan struct{})
	go p.run(hook, func() { close(first) })
	timer := time.NewTimer(portsStartup)
	defer timer.Stop()
	select {
	case <-first:
	case <-hook.Done():
	case <-timer.C: // an error would end the process
		klog.FromContext(hook).Error(nil, "The ports of Services are not compared yet")
	}
	return nil
}

// run compares whenever Services change, until ctx ends. It calls once after
// the first success.
func (p *ports) run(ctx context.Context, once func()) {
	defer p.stored.Destroy()
	if !cache.WaitForCacheSync(ctx.Done(), p.synced) {
		return
	}
	for {
		next := portsCheck
		switch err := p.compare(time.Now()); {
		case err != nil:
			klog.FromContext(ctx).Error(err, "The ports of Services cannot be compared")
			next = portsRetry
		case len(p.idle) > 0:
			next = portsIdle
			fallthrough
		default:
			if once != nil {
				once()
				once = nil
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// compare marks what Services have and takes back what none has had for a
// while.
func (p *ports) compare(now time.Time) error {
	given, err := p.given()
	if err != nil {
		return err
	}
	services, err := p.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list Services: %w", err)
	}
	used := usedPorts(services)
	for port := range used {
		delete(p.idle, port)
		if given.Has(port) || !p.all.Contains(port) {
			continue
		}
		if err := p.bitmap.Allocate(port); err != nil && !errors.Is(err, portallocator.ErrAllocated) {
			return fmt.Errorf("mark port %d: %w", port, err)
		}
	}
	given.ForEach(func(port int) {
		if since, known := p.idle[port]; !known && !used.Has(port) {
			p.idle[port] = now
		} else if known && now.Sub(since) >= portsIdle {
			err = errors.Join(err, p.bitmap.Release(port))
			delete(p.idle, port)
		}
	})
	for port := range p.idle {
		if !given.Has(port) {
			delete(p.idle, port)
		}
	}
	return err
}

// given returns the ports that are given out, by the bitmap as it is stored. It
// makes one where there is none, or none for this range.
func (p *ports) given() (*portallocator.PortAllocator, error) {
	snapshot, err := p.stored.Get()
	if err != nil {
		return nil, fmt.Errorf("read ports: %w", err)
	}
	if snapshot.Range == p.all.String() {
		given, err := portallocator.NewFromSnapshot(snapshot)
		if err != nil {
			return nil, fmt.Errorf("read ports: %w", err)
		}
		return given, nil
	}
	none, err := portallocator.NewInMemory(p.all)
	if err == nil {
		err = none.Snapshot(snapshot)
	}
	if err == nil {
		err = p.stored.CreateOrUpdate(snapshot)
	}
	if err != nil {
		return nil, fmt.Errorf("store ports: %w", err)
	}
	return none, nil
}

func usedPorts(services []*corev1.Service) sets.Set[int] {
	used := sets.New[int]()
	for _, s := range services {
		for _, port := range s.Spec.Ports {
			used.Insert(int(port.NodePort))
		}
		used.Insert(int(s.Spec.HealthCheckNodePort))
	}
	return used.Delete(0)
}
