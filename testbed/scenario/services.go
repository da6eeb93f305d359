package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/testbed"
)

// Addresses of Services that belong to no machine: a route leads to them.
const (
	balancedIP = "203.0.113.10" // of the Service all is about
	edgeIP     = "203.0.113.11"
	fencedIP   = "203.0.113.12"
	externalIP = "198.51.100.20"
)

const (
	backends = 6
	// served is how long a part waits for what it has changed to be served.
	served = 20 * time.Second
)

// shop is a Deployment behind a Service of every kind, and clients of it
// everywhere.
type shop struct {
	*space
	via     string // whose API is used
	tries   int    // for each address from each place
	even    int    // to see how evenly they are spread
	machine *testbed.Machine
	asker   string // a pod, on the last node
	pod     place
	outside place
	hosts   []place // the nodes
	addrs   map[string]netip.Addr
}

// part is one thing that is tried; it returns what it measured.
type part struct {
	what string
	try  func(context.Context) (string, error)
}

// Services asks a Deployment of six through Services of every kind, from a pod,
// from every node and from outside. What fails is noted, and the rest is tried
// all the same.
func (b *Bed) Services(ctx context.Context, tries, even int) error {
	s, err := b.openShop(ctx, tries, even)
	if err != nil {
		return err
	}
	var failed []error
	for _, p := range s.parts() {
		began := time.Now()
		measured, err := p.try(ctx)
		if ctx.Err() != nil {
			return errors.Join(append(failed, ctx.Err())...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.what, err))
			measured = "FAILED: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		b.Printf("%s (%.1f s): %s", p.what, time.Since(began).Seconds(), measured)
	}
	return errors.Join(errors.Join(failed...), s.end(ctx, s.via))
}

func (s *shop) parts() []part {
	return []part{
		{"through every address, from everywhere", s.everywhere},
		{"spread evenly", s.evenly},
		{"several ports by name", s.ports},
		{"session affinity", s.sticky},
		{"externalTrafficPolicy Local", s.edge},
		{"internalTrafficPolicy Local", s.inner},
		{"source ranges", s.fenced},
		{"headless", s.headless},
		{"a pod through its own Service", s.hairpin},
		{"a backend on the host's network", s.hosted},
		{"one port, two ways to a pod", s.twoWays},
		{"no endpoints", s.empty},
		{"type changed in place", s.turn},
		{"SCTP", s.sctp},
		{"every API server to every pod", s.proxied},
		{"every API server to a webhook", s.hooked},
	}
}

func (b *Bed) openShop(ctx context.Context, tries, even int) (*shop, error) {
	sp, err := b.space(ctx, "services", b.Nodes[0])
	if err != nil {
		return nil, err
	}
	last := b.Nodes[len(b.Nodes)-1]
	s := &shop{
		space: sp, via: b.Nodes[0], tries: tries, even: even,
		asker: "asker", pod: sp.podPlace(last, "asker"), addrs: map[string]netip.Addr{},
	}
	for _, node := range b.Nodes {
		s.hosts = append(s.hosts, b.nodePlace(node))
		if s.addrs[node], err = b.Addr(node); err != nil {
			return nil, err
		}
	}
	if s.machine, err = b.Machine(ctx, "outside"); err != nil {
		return nil, err
	}
	s.outside = machinePlace(s.machine)
	c, err := b.Client(s.via)
	if err != nil {
		return nil, err
	}
	d := deployment("web", map[string]string{"app": "web"}, backends)
	serve := &d.Spec.Template.Spec.Containers[0]
	serve.Args = []string{"serve", "--addr", ":8080,:9090"}
	serve.Ports = []corev1.ContainerPort{
		{Name: "http", ContainerPort: 8080}, {Name: "other", ContainerPort: 9090},
		{Name: "datagrams", ContainerPort: 8080, Protocol: corev1.ProtocolUDP},
	}
	if _, err := c.AppsV1().Deployments(s.name).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("deploy web: %w", err)
	}
	if err := s.runPod(ctx, s.asker, last, nil); err != nil {
		return nil, err
	}
	if err := s.settle(ctx, s.via, "web", b.Nodes); err != nil {
		return nil, err
	}
	return s, s.podReady(ctx, s.asker)
}

// runPod makes a pod of the web app on a node, changed as one likes.
func (s *shop) runPod(ctx context.Context, name, node string, change func(*corev1.PodSpec)) error {
	c, err := s.Client(s.via)
	if err != nil {
		return err
	}
	spec := deployment(name, map[string]string{"app": name}, 1).Spec.Template.Spec
	spec.NodeName, spec.TopologySpreadConstraints = node, nil
	if change != nil {
		change(&spec)
	}
	_, err = c.CoreV1().Pods(s.name).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: spec,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("run pod %s: %w", name, err)
	}
	return nil
}

func (s *shop) podReady(ctx context.Context, name string) error {
	c, err := s.Client(s.via)
	if err != nil {
		return err
	}
	return s.eventually(ctx, "pod "+name, func(ctx context.Context) error {
		p, err := c.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{})
		if err == nil && !ready(*p) {
			err = fmt.Errorf("it is not ready: %s", p.Status.Phase)
		}
		return err
	})
}

// expose makes a Service that leads port 80 to port 8080 of the pods with the
// label, changed as one likes, and returns it as it is then.
func (s *shop) expose(ctx context.Context, name, app string, kind corev1.ServiceType, change func(*corev1.ServiceSpec)) (*corev1.Service, error) {
	c, err := s.Client(s.via)
	if err != nil {
		return nil, err
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Type: kind, Selector: map[string]string{"app": app},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
	if change != nil {
		change(&svc.Spec)
	}
	if svc, err = c.CoreV1().Services(s.name).Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create service %s: %w", name, err)
	}
	return svc, nil
}

// balanced does what a cloud's load balancer would: it gives a Service an
// address. The route to it is the machine's.
func (s *shop) balanced(ctx context.Context, svc *corev1.Service, ip string) error {
	return s.patchService(ctx, svc.Name, fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, ip), "status")
}

func (s *shop) patchService(ctx context.Context, name, patch string, subresources ...string) error {
	c, err := s.Client(s.via)
	if err != nil {
		return err
	}
	_, err = c.CoreV1().Services(s.name).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
	if err != nil {
		return fmt.Errorf("patch service %s: %w", name, err)
	}
	return nil
}

// route leads an address by way of a node, for the machine outside.
func (s *shop) route(ip, node string) error {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return err
	}
	return s.machine.Route(netip.PrefixFrom(addr, addr.BitLen()), s.addrs[node])
}

// soon waits until what a part has changed is served, with a patience of its
// own: what is not is a finding, and other parts wait.
func (s *shop) soon(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, served)
	defer cancel()
	return s.eventually(ctx, what, try)
}

// soonAnswered waits until all addresses answer from a place.
func (s *shop) soonAnswered(ctx context.Context, from place, udp bool, addresses ...string) error {
	return s.soon(ctx, "served to "+from.name, func(ctx context.Context) error {
		reports, err := from.ask(ctx, question{tries: 2, udp: udp, timeout: time.Second}, addresses...)
		if err != nil {
			return err
		}
		return from.answered(reports)
	})
}

// nodePorts are the addresses of a node port, one for each node.
func (s *shop) nodePorts(port int32) []string {
	var out []string
	for _, node := range s.Nodes {
		out = append(out, at(s.addrs[node].String(), port))
	}
	return out
}
