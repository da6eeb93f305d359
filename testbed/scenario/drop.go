package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/testbed"
	"github.com/mootkube/moot/testbed/caller"
)

const (
	// promised is how long clients may be in trouble when a backend's node dies.
	promised = time.Second
	// drain is how long a pod that is to end goes on serving, as its users
	// would have it.
	drain = 5 * time.Second
	// quiet is how long there has to be no trouble for all to be well again:
	// more than a try may hang.
	quiet = 4 * time.Second
)

// Drop breaks one thing after the other under clients that ask all the time, and
// tells what they noticed. No connection may fail for the end of a pod in good
// order nor for restarts of daemons. Where a node dies trouble may last: longer
// than the promise is told, longer than the bound is an error.
func (b *Bed) Drop(ctx context.Context, bound time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	d, err := b.openDrop(ctx)
	if d != nil {
		defer d.running.Wait()
	}
	defer cancel()
	if err != nil {
		return err
	}
	var failed []error
	for _, f := range d.faults() {
		if err := d.tryFault(ctx, f, bound); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", f.what, err))
			if ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(errors.Join(failed...), d.end(ctx, d.client))
}

// drop is three nodes with a backend each and their clients.
type drop struct {
	*space
	leader, victim string
	client         string // the node where clients are
	asked          []*watched
	running        sync.WaitGroup // of clients
}

// watched is one process that asks.
type watched struct {
	names []string // for each address
	kept  bool     // over connections that stay open
	http  *http.Client
	at    string
}

func (w *watched) report(ctx context.Context, path string) ([]caller.Report, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.at+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("hear of the client %s: %w", w.names[0], err)
	}
	var out []caller.Report
	err = json.NewDecoder(resp.Body).Decode(&out)
	return out, errors.Join(err, resp.Body.Close())
}

func (b *Bed) openDrop(ctx context.Context) (*drop, error) {
	leader, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return nil, err
	}
	others := b.Others(leader)
	d := &drop{leader: leader, client: others[0], victim: others[1]}
	if d.space, err = b.space(ctx, "drop", d.client); err != nil {
		return nil, err
	}
	if err := d.deployEach(ctx); err != nil {
		return nil, err
	}
	svc, err := d.serviceOf(ctx)
	if err != nil {
		return nil, err
	}
	addr, err := b.Addr(d.client)
	if err != nil {
		return nil, err
	}
	if err := d.backendsReady(ctx, b.Nodes); err != nil {
		return nil, err
	}
	if err := d.startClients(ctx, at(svc.Spec.ClusterIP, 80), at(addr.String(), svc.Spec.Ports[0].NodePort)); err != nil {
		return d, err
	}
	b.Printf("clients on %s and outside, 100 connections a second each; %s leads, %s is the victim; a backend on each", d.client, d.leader, d.victim)
	return d, nil
}

// deployEach makes a backend on every node: a DaemonSet's stay where they are.
func (d *drop) deployEach(ctx context.Context) error {
	c, err := d.Client(d.client)
	if err != nil {
		return err
	}
	labels := map[string]string{"app": "web"}
	template := deployment("web", labels, 1).Spec.Template
	grace := int64(2 * drain / time.Second)
	template.Spec.TerminationGracePeriodSeconds, template.Spec.TopologySpreadConstraints = &grace, nil
	template.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Sleep: &corev1.SleepAction{Seconds: int64(drain / time.Second)},
	}}
	_, err = c.AppsV1().DaemonSets(d.name).Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("deploy backends: %w", err)
	}
	return nil
}

func (d *drop) serviceOf(ctx context.Context) (*corev1.Service, error) {
	c, err := d.Client(d.client)
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Services(d.name).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
}

// backendsReady waits until each of the nodes has its backend, and no other is on
// its way out.
func (d *drop) backendsReady(ctx context.Context, nodes []string) error {
	return d.eventually(ctx, "backends", func(ctx context.Context) error {
		pods, err := d.pods(ctx, d.client, "web")
		if err != nil {
			return err
		}
		well := 0
		for _, p := range pods {
			if ready(p) && slices.Contains(nodes, p.Spec.NodeName) {
				well++
			}
		}
		if well != len(nodes) {
			return fmt.Errorf("%d of %d: %s", well, len(nodes), describe(pods))
		}
		return nil
	})
}

// startClients starts those in pods, on the node and outside.
func (d *drop) startClients(ctx context.Context, cluster, nodePort string) error {
	const inPod, keptInPod = "7001", "7002"
	m, err := d.Machine(ctx, "outside")
	if err != nil {
		return err
	}
	fromNode := func(ctx context.Context, network, addr string) (net.Conn, error) {
		return d.Dial(ctx, d.client, network, addr)
	}
	ask := []string{"ask", "--listen"}
	// Enough to be led to each backend, with patience to see how long they hang.
	hold := []string{"hold", "--conns", "12", "--timeout", "20s", "--listen"}
	for _, p := range []struct {
		name, port string
		args       []string
		watched
	}{
		{"asker", inPod, append(ask, ":"+inPod, cluster, nodePort), watched{names: []string{"pod, ClusterIP", "pod, NodePort"}}},
		{"holder", keptInPod, append(hold, ":"+keptInPod, cluster), watched{names: []string{"pod, ClusterIP, kept"}, kept: true}},
	} {
		ip, err := d.clientPod(ctx, p.name, p.port, p.args)
		if err != nil {
			return err
		}
		d.watch(p.watched, net.JoinHostPort(ip, p.port), fromNode)
	}
	local := func(port string) string { return "127.0.0.1:" + port }
	for _, p := range []struct {
		at   string
		args []string
		on   func(context.Context, testbed.Command) (int, error)
		dial func(context.Context, string, string) (net.Conn, error)
		watched
	}{
		{local("7003"), append(ask, local("7003"), cluster, nodePort), d.onClient, fromNode, watched{names: []string{"node, ClusterIP", "node, NodePort"}}},
		{local("7004"), append(hold, local("7004"), cluster), d.onClient, fromNode, watched{names: []string{"node, ClusterIP, kept"}, kept: true}},
		{local("7003"), append(ask, local("7003"), nodePort), m.Exec, m.Dial, watched{names: []string{"outside, NodePort"}}},
		{local("7004"), append(hold, local("7004"), nodePort), m.Exec, m.Dial, watched{names: []string{"outside, NodePort, kept"}, kept: true}},
	} {
		d.running.Go(func() {
			// Its end before ours shows when it is asked for a report.
			_, _ = p.on(ctx, testbed.Command{Argv: append([]string{"testbed-web"}, p.args...)})
		})
		d.watch(p.watched, p.at, p.dial)
	}
	return d.calm(ctx)
}

func (d *drop) onClient(ctx context.Context, cmd testbed.Command) (int, error) {
	return d.Exec(ctx, d.client, cmd)
}

func (d *drop) watch(w watched, at string, dial func(context.Context, string, string) (net.Conn, error)) {
	w.at = at
	w.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	d.asked = append(d.asked, &w)
}

// clientPod runs a pod that asks and returns its address.
func (d *drop) clientPod(ctx context.Context, name, port string, args []string) (string, error) {
	c, err := d.Client(d.client)
	if err != nil {
		return "", err
	}
	spec := deployment(name, map[string]string{"app": name}, 1).Spec.Template.Spec
	spec.NodeName, spec.TopologySpreadConstraints = d.client, nil
	spec.Containers[0].Args = args
	probe := spec.Containers[0].ReadinessProbe.HTTPGet
	probe.Path, probe.Port = "/peek", intstr.Parse(port)
	_, err = c.CoreV1().Pods(d.name).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: spec,
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("run client %s: %w", name, err)
	}
	ip := ""
	err = d.eventually(ctx, "client "+name, func(ctx context.Context) error {
		p, err := c.CoreV1().Pods(d.name).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !ready(*p) {
			return fmt.Errorf("it is not ready: %s", p.Status.Phase)
		}
		ip = p.Status.PodIP
		return nil
	})
	return ip, err
}

// calm waits until no client has had trouble for a while.
func (d *drop) calm(ctx context.Context) error {
	return d.eventually(ctx, "clients without trouble", func(ctx context.Context) error {
		for _, w := range d.asked {
			reports, err := w.report(ctx, "/peek")
			if err != nil {
				return err
			}
			for i, r := range reports {
				if r.Calm < quiet || r.Tries == 0 {
					return fmt.Errorf("%s: calm for %s, %d of %d failed: %v", w.names[i], seconds(r.Calm), r.Failures, r.Tries, r.Errors)
				}
			}
		}
		return nil
	})
}
