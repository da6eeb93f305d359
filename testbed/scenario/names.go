package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	dnsIP     = "10.43.0.10" // of the Service of all DNS servers
	cornerIP  = "192.0.2.77" // what the stub domain's server says to everything
	customMap = "coredns-custom"
)

// names is a pod on each node behind Services of several kinds, whose names are
// looked up from these pods.
type names struct {
	*space
	via     string
	service string            // address of the Service
	pods    map[string]string // by node, its pod
	ips     map[string]string // by node, its pod's address
}

// Names looks up names of every kind from a pod on each node. Then the leader
// crashes, and a node is cut off from all others: how long is its pod handed out
// elsewhere, and do names resolve on the one that is alone? Last, a daemon stops
// and starts: is every question answered meanwhile?
func (b *Bed) Names(ctx context.Context) (err error) {
	n, err := b.openNames(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close(context.WithoutCancel(ctx))) }()
	if err := n.resolveAll(ctx); err != nil {
		return err
	}
	b.Printf("on every node: Service, headless, SRV, PTR, ExternalName, short names, a stub domain, a forwarded one")
	victim, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return err
	}
	for _, fault := range []func(context.Context, string) error{n.crash, n.isolate, n.restart} {
		if err := fault(ctx, victim); err != nil {
			return err
		}
		if err := b.wholeAgain(ctx); err != nil {
			return err
		}
		if err := n.findPods(ctx); err != nil {
			return err
		}
		if err := n.resolveAll(ctx); err != nil {
			return err
		}
		victim = b.Others(victim)[0]
	}
	b.Printf("all names resolve on every node again")
	return nil
}

func (b *Bed) openNames(ctx context.Context) (*names, error) {
	s, err := b.space(ctx, "names", b.Nodes[0])
	if err != nil {
		return nil, err
	}
	n := &names{space: s, via: b.Nodes[0]}
	c, err := b.Client(n.via)
	if err != nil {
		return nil, err
	}
	app := map[string]string{"app": "web"}
	template := deployment("web", app, 1).Spec.Template
	template.Spec.TopologySpreadConstraints = nil
	_, err = c.AppsV1().DaemonSets(s.name).Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create web: %w", err)
	}
	server := deployment("corner", map[string]string{"app": "corner"}, 1)
	serve := &server.Spec.Template.Spec.Containers[0]
	serve.Args, serve.ReadinessProbe = []string{"nameserver", ":5353", cornerIP}, nil
	if _, err := c.AppsV1().Deployments(s.name).Create(ctx, server, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create corner: %w", err)
	}
	http := []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}
	var corner string
	for _, svc := range []struct {
		name string
		spec corev1.ServiceSpec
		ip   *string
	}{
		{"web", corev1.ServiceSpec{Selector: app, Ports: http}, &n.service},
		{"all", corev1.ServiceSpec{Selector: app, Ports: http, ClusterIP: corev1.ClusterIPNone}, nil},
		{"away", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.corner.test"}, nil},
		{"corner", corev1.ServiceSpec{Selector: map[string]string{"app": "corner"}, Ports: []corev1.ServicePort{
			{Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(5353)},
		}}, &corner},
	} {
		made, err := c.CoreV1().Services(s.name).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.name}, Spec: svc.spec}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("create service %s: %w", svc.name, err)
		}
		if svc.ip != nil {
			*svc.ip = made.Spec.ClusterIP
		}
	}
	_, err = c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: customMap},
		Data: map[string]string{
			"corner.server":    "corner.test:53 {\n    forward . " + corner + "\n}\n",
			"outside.override": "forward outside.test " + corner + "\n",
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", customMap, err)
	}
	if err := s.settle(ctx, n.via, "corner", b.Nodes); err != nil {
		return nil, err
	}
	return n, n.findPods(ctx)
}

// close takes back what was changed outside the namespace, too.
func (n *names) close(ctx context.Context) error {
	c, err := n.Client(n.via)
	if err != nil {
		return err
	}
	err = c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Delete(ctx, customMap, metav1.DeleteOptions{})
	if err != nil && !missing(err) {
		return fmt.Errorf("delete %s: %w", customMap, err)
	}
	return n.end(ctx, n.via)
}

// findPods waits for a ready pod on every node. After a crash it may have
// another address.
func (n *names) findPods(ctx context.Context) error {
	return n.eventually(ctx, "a pod on every node", func(ctx context.Context) error {
		n.pods, n.ips = map[string]string{}, map[string]string{}
		for _, via := range n.Nodes { // as each node has it: each answers by its own
			pods, err := n.space.pods(ctx, via, "web")
			if err != nil {
				return err
			}
			there := map[string]string{}
			for _, p := range pods {
				if ready(p) {
					there[p.Spec.NodeName] = p.Status.PodIP
					n.pods[p.Spec.NodeName], n.ips[p.Spec.NodeName] = p.Name, p.Status.PodIP
				}
			}
			if len(there) != len(n.Nodes) {
				return fmt.Errorf("ready on %v, as %s has it", there, via)
			}
		}
		return nil
	})
}

func (n *names) full(name string) string { return name + "." + n.name + ".svc.cluster.local." }

// query asks from the pod on a node.
func (n *names) query(ctx context.Context, node, kind, name string) ([]string, error) {
	out, err := n.podPlace(node, n.pods[node]).run(ctx, "query", kind, name)
	if err != nil || out == "" {
		return nil, err
	}
	return strings.Split(out, "\n"), nil
}

func (n *names) answers(ctx context.Context, node, kind, name string, want ...string) error {
	got, err := n.query(ctx, node, kind, name)
	if err != nil {
		return err
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("on %s, %s of %s: %q, want %q", node, kind, name, got, want)
	}
	return nil
}

// headless checks all answers that lead to the pods themselves.
func (n *names) headless(ctx context.Context, node string, on []string) error {
	var addresses, services []string
	for _, other := range on {
		ip := n.ips[other]
		addresses = append(addresses, "A "+ip)
		services = append(services, "SRV 8080 "+n.full(strings.ReplaceAll(ip, ".", "-")+".all"), "and A "+ip)
	}
	if err := n.answers(ctx, node, "A", n.full("all"), addresses...); err != nil {
		return err
	}
	return n.answers(ctx, node, "SRV", "_http._tcp."+n.full("all"), services...)
}

// cluster checks names that every node can tell by itself.
func (n *names) cluster(ctx context.Context, node string) error {
	for _, q := range []struct{ kind, name, want string }{
		{"A", n.full("web"), "A " + n.service},
		{"AAAA", n.full("web"), ""},
		{"A", "web", "A " + n.service},
		{"A", "web." + n.name, "A " + n.service},
		{"PTR", n.service, "PTR " + n.full("web")},
		{"A", "kubernetes.default.svc", "A 10.43.0.1"},
	} {
		var want []string
		if q.want != "" {
			want = append(want, q.want)
		}
		if err := n.answers(ctx, node, q.kind, q.name, want...); err != nil {
			return err
		}
	}
	if got, err := n.query(ctx, node, "A", n.full("nobody")); err == nil {
		return fmt.Errorf("on %s a name that does not exist is %q", node, got)
	}
	return nil
}

// forwarded checks names that another server tells.
func (n *names) forwarded(ctx context.Context, node string) error {
	for _, name := range []string{"www.corner.test", "www.outside.test"} {
		if err := n.answers(ctx, node, "A", name, "A "+cornerIP); err != nil {
			return err
		}
	}
	return n.answers(ctx, node, "A", n.full("away"), "A "+cornerIP, "CNAME www.corner.test.")
}

func (n *names) resolveAll(ctx context.Context) error {
	for _, node := range n.Nodes {
		for _, check := range []func(context.Context, string) error{
			func(ctx context.Context, node string) error { return n.headless(ctx, node, n.Nodes) }, n.cluster, n.forwarded,
		} {
			err := n.eventually(ctx, "names on "+node, func(ctx context.Context) error { return check(ctx, node) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// leftOut waits until the answers of a node lead to pods on some nodes alone.
func (n *names) leftOut(ctx context.Context, node string, on []string, began time.Time) (took time.Duration, err error) {
	err = n.every(ctx, 20*time.Millisecond, "pods on "+strings.Join(on, " ")+" alone on "+node, func(ctx context.Context) error {
		return n.headless(ctx, node, on)
	})
	return time.Since(began), err
}

// crash takes power from a node, and looks how long the others hand its pod out.
func (n *names) crash(ctx context.Context, victim string) error {
	rest := n.Others(victim)
	began := time.Now()
	if err := n.Crash(ctx, victim); err != nil {
		return err
	}
	var names, listed time.Duration
	g, gctx := errgroup.WithContext(ctx)
	for _, node := range rest {
		g.Go(func() error {
			took, err := n.leftOut(gctx, node, rest, began)
			n.mu.Lock()
			names = max(names, took)
			n.mu.Unlock()
			return err
		})
	}
	g.Go(func() error {
		err := n.outOfService(gctx, rest[0], victim, "all")
		listed = time.Since(began)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	n.Printf("crash of %s, the leader, to its pod out of every other node's headless answers: %s (EndpointSlice: %s)", victim, seconds(names), seconds(listed))
	return n.Start(ctx, victim)
}

// isolate cuts a node off from all others.
func (n *names) isolate(ctx context.Context, lone string) error {
	rest := n.Others(lone)
	began := time.Now()
	if err := n.Cut(ctx, []string{lone}, rest); err != nil {
		return err
	}
	var alone, elsewhere time.Duration
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		alone, err = n.leftOut(gctx, lone, []string{lone}, began)
		return err
	})
	g.Go(func() (err error) {
		elsewhere, err = n.leftOut(gctx, rest[0], rest, began)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := n.holds(ctx, 5*time.Second, "names on "+lone+", which is alone", func(ctx context.Context) error {
		return errors.Join(n.cluster(ctx, lone), n.headless(ctx, lone, []string{lone}))
	}); err != nil {
		return err
	}
	n.Printf("%s cut off from all: its headless answers lead to its own pod alone after %s, others' not to it after %s; names resolve on it",
		lone, seconds(alone), seconds(elsewhere))
	return n.Heal(ctx)
}

// restart stops a node's daemon and starts it again, while a client on the node
// asks without end, and tries no question twice.
func (n *names) restart(ctx context.Context, node string) error {
	asking, end := context.WithCancel(ctx)
	defer end()
	var asked int
	var failed []error
	g, gctx := errgroup.WithContext(asking)
	g.Go(func() error {
		for gctx.Err() == nil {
			out, err := n.on(ctx, node, nil, "testbed-web", "query", "--server", dnsIP, "--tries", "1", "A", n.full("web"))
			if err == nil && out != "A "+n.service {
				err = fmt.Errorf("answered %q", out)
			}
			asked++
			if err != nil && len(failed) < 10 {
				failed = append(failed, err)
			}
		}
		return nil
	})
	err := n.Stop(ctx, node)
	if err == nil {
		err = n.holds(ctx, 3*time.Second, "without a daemon", func(context.Context) error { return nil })
	}
	if err == nil {
		err = n.Start(ctx, node)
	}
	end()
	err = errors.Join(err, g.Wait())
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("SIGTERM and start of %s, %d questions: %w", node, asked, errors.Join(failed...))
	}
	n.Printf("SIGTERM and start of the daemon on %s: %d questions asked there meanwhile, all answered", node, asked)
	return nil
}
