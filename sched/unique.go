package sched

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// The range that node ports are drawn from here, upstream's default.
const (
	firstNodePort = 30000
	lastNodePort  = 32767
)

const (
	uniqueRests = 200 * time.Millisecond // a merge brings many Services at once
	uniqueRetry = 5 * time.Second

	// reasonTwice is the reason of the Event on a Service that got another
	// address.
	reasonTwice = "AddressConflict"
	// nowhere is where a Service points for the moment between two addresses, and
	// annotationMoving keeps what it is to be then: whoever leads finishes it.
	nowhere          = "moving.invalid"
	annotationMoving = "moot.local/service-moving"
)

// twice is a Service of which an older one has an address as well.
type twice struct {
	service *corev1.Service
	ip      bool            // its cluster address
	ports   map[int32]int32 // its node ports given twice, and free ones to have instead; 0 if none is free
}

// usedTwice finds the Services that must give way: the two sides of a cut each
// give addresses from the same ranges. The older Service keeps what it has.
func usedTwice(services []*corev1.Service) []twice {
	services = slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	type nodePort struct {
		protocol corev1.Protocol
		port     int32
	}
	ips, ports, numbers := map[string]bool{}, map[nodePort]bool{}, map[int32]bool{}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			numbers[p.NodePort] = true
		}
	}
	var out []twice
	for _, s := range services {
		t := twice{service: s}
		for _, ip := range s.Spec.ClusterIPs {
			if ip != "" && ip != corev1.ClusterIPNone {
				t.ip = t.ip || ips[ip]
				ips[ip] = true
			}
		}
		own := map[nodePort]bool{}
		for _, p := range s.Spec.Ports {
			key := nodePort{cmp.Or(p.Protocol, corev1.ProtocolTCP), p.NodePort}
			if p.NodePort == 0 || own[key] {
				continue
			}
			own[key] = true
			if !ports[key] {
				ports[key] = true
				continue
			}
			if t.ports == nil {
				t.ports = map[int32]int32{}
			}
			t.ports[p.NodePort] = 0
			for n := int32(firstNodePort); n <= lastNodePort; n++ {
				if !numbers[n] {
					t.ports[p.NodePort], numbers[n] = n, true
					break
				}
			}
		}
		if t.ip || len(t.ports) > 0 {
			out = append(out, t)
		}
	}
	return out
}

// underWay finds the Services that have no address because a move has not ended.
func underWay(services []*corev1.Service) []*corev1.Service {
	var out []*corev1.Service
	for _, s := range services {
		if s.Spec.Type == corev1.ServiceTypeExternalName && s.Spec.ExternalName == nowhere && s.Annotations[annotationMoving] != "" {
			out = append(out, s)
		}
	}
	return out
}

// keepUnique gives, until ctx ends, Services that share an address with an
// older one another.
func (t *term) keepUnique(ctx context.Context, client kubernetes.Interface) error {
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	services := factory.Core().V1().Services()
	handle, err := services.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { poke() }, UpdateFunc: func(any, any) { poke() },
	})
	if err != nil {
		return fmt.Errorf("watch services: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		return ctx.Err()
	}
	u := unique{client: client, log: t.cfg.Log}
	for {
		var all []*corev1.Service
		for _, obj := range services.Informer().GetStore().List() {
			all = append(all, obj.(*corev1.Service))
		}
		wait := time.NewTimer(uniqueRests)
		if !u.repair(ctx, all) {
			wait.Reset(uniqueRetry)
			poke()
		}
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// unique changes the Services.
type unique struct {
	client kubernetes.Interface
	log    *slog.Logger
}

// repair reports whether all went well.
func (u unique) repair(ctx context.Context, services []*corev1.Service) bool {
	well := true
	for _, s := range underWay(services) {
		after, err := u.finish(ctx, s)
		well = u.moved(ctx, s, after, err) && well
	}
	for _, t := range usedTwice(services) {
		after, err := u.move(ctx, t)
		well = u.moved(ctx, t.service, after, err) && well
	}
	return well
}

// moved tells what became of a Service, and whether it went well.
func (u unique) moved(ctx context.Context, before, after *corev1.Service, err error) bool {
	name := before.Namespace + "/" + before.Name
	if err != nil {
		if ctx.Err() == nil {
			u.log.Warn("a Service shares an address with an older one and has not got another yet", "service", name, "err", err)
		}
		return false
	}
	u.log.Warn("a Service shared an address with an older one and got another", "service", name, "before", describe(before), "after", describe(after))
	u.tell(ctx, after, fmt.Sprintf("An older Service has the same address, given on the other side of a cut: %s became %s.", describe(before), describe(after)))
	return true
}

// move gives one Service other addresses. The API lets a cluster address change
// only by way of a Service that has none.
func (u unique) move(ctx context.Context, t twice) (*corev1.Service, error) {
	services := u.client.CoreV1().Services(t.service.Namespace)
	want := t.service.DeepCopy()
	for i, p := range want.Spec.Ports {
		if free, ok := t.ports[p.NodePort]; ok && p.NodePort != 0 {
			if free == 0 {
				return nil, errors.New("no node port is free")
			}
			want.Spec.Ports[i].NodePort = free
		}
	}
	if !t.ip {
		return services.Update(ctx, want, metav1.UpdateOptions{})
	}
	want.Spec.ClusterIP, want.Spec.ClusterIPs, want.Spec.HealthCheckNodePort = "", nil, 0
	spec, err := json.Marshal(want.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode what the Service is to be: %w", err)
	}
	none := t.service.DeepCopy()
	metav1.SetMetaDataAnnotation(&none.ObjectMeta, annotationMoving, string(spec))
	none.Spec.Type, none.Spec.ExternalName = corev1.ServiceTypeExternalName, nowhere
	none.Spec.ClusterIP, none.Spec.ClusterIPs = "", nil
	none.Spec.IPFamilies, none.Spec.IPFamilyPolicy = nil, nil
	none.Spec.ExternalTrafficPolicy, none.Spec.InternalTrafficPolicy = "", nil
	none.Spec.AllocateLoadBalancerNodePorts, none.Spec.LoadBalancerClass = nil, nil
	none.Spec.HealthCheckNodePort = 0
	for i := range none.Spec.Ports {
		none.Spec.Ports[i].NodePort = 0
	}
	if none, err = services.Update(ctx, none, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("take the address away: %w", err)
	}
	return u.finish(ctx, none)
}

// finish gives a Service whose move is under way its other address.
func (u unique) finish(ctx context.Context, none *corev1.Service) (*corev1.Service, error) {
	services, want := u.client.CoreV1().Services(none.Namespace), none.DeepCopy()
	want.Spec = corev1.ServiceSpec{}
	if err := json.Unmarshal([]byte(none.Annotations[annotationMoving]), &want.Spec); err != nil {
		return nil, fmt.Errorf("decode what the Service is to be: %w", err)
	}
	delete(want.Annotations, annotationMoving)
	after, err := services.Update(ctx, want, metav1.UpdateOptions{})
	if err != nil {
		// What is left points nowhere: with ports for the API to choose it may
		// still succeed.
		for i := range want.Spec.Ports {
			want.Spec.Ports[i].NodePort = 0
		}
		var again error
		if after, again = services.Update(ctx, want, metav1.UpdateOptions{}); again != nil {
			return nil, fmt.Errorf("give another address: %w", errors.Join(err, again))
		}
	}
	return after, nil
}

// describe names a Service's addresses.
func describe(s *corev1.Service) string {
	words := []string{fmt.Sprint(s.Spec.ClusterIPs)}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			words = append(words, fmt.Sprintf("node port %d", p.NodePort))
		}
	}
	return strings.Join(words, ", ")
}

// tell leaves an Event on the Service; one that fails is only not told.
func (u unique) tell(ctx context.Context, s *corev1.Service, text string) {
	now := metav1.Now()
	_, err := u.client.CoreV1().Events(s.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: s.Name + ".", Namespace: s.Namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Service", APIVersion: "v1", Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion},
		Reason:         reasonTwice, Message: text, Type: corev1.EventTypeWarning,
		Source: corev1.EventSource{Component: "moot-leader"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && ctx.Err() == nil {
		u.log.Warn("no Event tells of the Service's other address", "service", s.Namespace+"/"+s.Name, "err", err)
	}
}
