package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/sched"
)

// crowd is a membership that the test makes up, and what a term says of it.
type crowd struct {
	changed chan struct{}

	mu     sync.Mutex
	health map[string]sched.NodeHealth
	report sched.Report
}

func newCrowd(names ...string) *crowd {
	c := &crowd{changed: make(chan struct{}, 1), health: map[string]sched.NodeHealth{}}
	for _, name := range names {
		c.health[name] = sched.NodeHealth{Name: name, State: sched.NodeAlive, Since: time.Now(), Birth: 1}
	}
	return c
}

func (c *crowd) set(state sched.NodeState, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		h := c.health[name]
		h.State, h.Since = state, time.Now()
		if state == sched.NodeRestarting {
			h.Until = h.Since.Add(time.Hour)
		}
		c.health[name] = h
	}
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *crowd) members() (out []sched.NodeHealth) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.health {
		out = append(out, h)
	}
	return out
}

func (c *crowd) tell(r sched.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report = r
}

func (c *crowd) verdict(name string) sched.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.report.Nodes {
		if n.Name == name {
			return n.Verdict
		}
	}
	return ""
}

// One term, real controllers and a real API server, nodes without kubelets: the
// test says what kubelets would, and what the membership says of the nodes.
func TestMembers(t *testing.T) {
	p := startPlane(t)
	names := []string{"n1", "n2", "n3"}
	for _, name := range names {
		makeNode(t, p, name)
	}
	who := newCrowd(names...)
	cfg := p.term(1, nil)
	cfg.Node, cfg.Nodes, cfg.Changed, cfg.Report = "elsewhere", who.members, who.changed, who.tell
	cfg.NodeGrace = 12 * time.Second // no kubelet renews: the leader does
	cfg.APIServers = func() []netip.AddrPort { return nil }
	started := time.Now()
	run(t, "term", func(ctx context.Context) error { return sched.Run(ctx, cfg) })
	for _, name := range names { // else the pods go to those that are ready first
		await(t, name+" to take pods", func(ctx context.Context) bool {
			node, err := p.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			return err == nil && len(node.Spec.Taints) == 0
		})
	}
	serve(t, p, "web", 6)
	t.Logf("pods are bound %s after the start of the term", time.Since(started).Round(time.Millisecond))
	first := podsByName(t, p, "web")

	// A blink takes pods out of the endpoints and leaves no trace.
	who.set(sched.NodeSuspect, "n2")
	since := time.Now()
	awaitEndpoints(t, p, "web", func(ready map[string]int) bool { return ready["n2"] == 0 && len(ready) == 2 })
	t.Logf("a silent node's pods are out of the endpoints after %s", time.Since(since).Round(time.Millisecond))
	who.set(sched.NodeAlive, "n2")
	since = time.Now()
	awaitEndpoints(t, p, "web", func(ready map[string]int) bool { return len(ready) == 3 })
	t.Logf("and back after %s", time.Since(since).Round(time.Millisecond))
	sameStatus(t, first, podsByName(t, p, "web"))

	// A node that restarts keeps its pods and endpoints and gets no new ones.
	who.set(sched.NodeRestarting, "n3")
	await(t, "taint of n3", func(ctx context.Context) bool { return tainted(ctx, t, p, "n3", "moot.local/member-away") })
	serve(t, p, "other", 4)
	for _, pod := range podsByName(t, p, "other") {
		if pod.Spec.NodeName == "n3" {
			t.Error("a pod was bound to a node that restarts")
		}
	}
	sameStatus(t, first, podsByName(t, p, "web"))
	who.set(sched.NodeAlive, "n3")
	await(t, "n3 without taint", func(ctx context.Context) bool { return !tainted(ctx, t, p, "n3", "moot.local/member-away") })

	checkDeath(t, p, who)
	checkBrake(t, p, who)
	checkLeft(t, p, who)
}

// checkDeath: a dead node's pods are replaced elsewhere; when it is back it is
// ready and takes pods again. All the while, the others' Leases are renewed.
func checkDeath(t *testing.T, p *plane, who *crowd) {
	t.Helper()
	who.set(sched.NodeDead, "n2")
	since := time.Now()
	var marked time.Time
	await(t, "replacements of n2's pods", func(ctx context.Context) bool {
		if marked.IsZero() && tainted(ctx, t, p, "n2", corev1.TaintNodeUnreachable) {
			marked = time.Now()
		}
		live := 0
		for _, pod := range podsByName(t, p, "web") {
			if pod.DeletionTimestamp == nil && pod.Spec.NodeName != "" && pod.Spec.NodeName != "n2" {
				live++
			}
		}
		return live == 6
	})
	t.Logf("a dead node is tainted after %s, its pods are bound elsewhere after %s",
		marked.Sub(since).Round(time.Millisecond), time.Since(since).Round(time.Millisecond))
	for _, name := range []string{"n1", "n3"} {
		node, err := p.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		check(t, err)
		lease, err := p.client.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), name, metav1.GetOptions{})
		check(t, err)
		if c := node.Status.Conditions[0]; c.Status != corev1.ConditionTrue || lease.OwnerReferences[0].UID != node.UID {
			t.Errorf("%s: %+v, Lease of %+v", name, c, lease.OwnerReferences)
		}
	}
	actAsKubelet(t, p, "web")
	who.set(sched.NodeAlive, "n2")
	await(t, "n2 to be ready and without taints", func(ctx context.Context) bool {
		node, err := p.client.CoreV1().Nodes().Get(ctx, "n2", metav1.GetOptions{})
		return err == nil && len(node.Spec.Taints) == 0 && node.Status.Conditions[0].Status == corev1.ConditionTrue
	})
}

// checkBrake: when two of three are gone at once, no pod is moved and the rest
// takes new ones.
func checkBrake(t *testing.T, p *plane, who *crowd) {
	t.Helper()
	before := podsByName(t, p, "web")
	who.set(sched.NodeDead, "n2", "n3")
	await(t, "the brake", func(context.Context) bool {
		return who.verdict("n2") == sched.VerdictHold && who.verdict("n3") == sched.VerdictHold
	})
	for _, name := range []string{"n2", "n3"} {
		await(t, "taint of "+name, func(ctx context.Context) bool { return tainted(ctx, t, p, name, "moot.local/member-away") })
	}
	awaitEndpoints(t, p, "web", func(ready map[string]int) bool { return ready["n2"]+ready["n3"] == 0 })
	serve(t, p, "late", 3)
	for _, pod := range podsByName(t, p, "late") {
		if pod.Spec.NodeName != "n1" {
			t.Errorf("a new pod was bound to %s", pod.Spec.NodeName)
		}
	}
	after := podsByName(t, p, "web")
	for name, pod := range before {
		if pod.DeletionTimestamp == nil && (after[name] == nil || after[name].DeletionTimestamp != nil) {
			t.Errorf("%s on %s was evicted in spite of the brake", name, pod.Spec.NodeName)
		}
	}
	who.set(sched.NodeAlive, "n2", "n3")
	await(t, "nodes without taints", func(ctx context.Context) bool {
		return !tainted(ctx, t, p, "n2", "moot.local/member-away") && !tainted(ctx, t, p, "n3", "moot.local/member-away")
	})
}

// checkLeft: nothing of a member that has left stays.
func checkLeft(t *testing.T, p *plane, who *crowd) {
	t.Helper()
	time.AfterFunc(time.Second, func() { who.set(sched.NodeLeft, "n3") }) // creation times have whole seconds
	await(t, "n3 to be gone", func(ctx context.Context) bool {
		_, nodeErr := p.client.CoreV1().Nodes().Get(ctx, "n3", metav1.GetOptions{})
		_, leaseErr := p.client.CoordinationV1().Leases("kube-node-lease").Get(ctx, "n3", metav1.GetOptions{})
		if !apierrors.IsNotFound(nodeErr) || !apierrors.IsNotFound(leaseErr) {
			return false
		}
		pods, err := p.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n3"})
		return err == nil && len(pods.Items) == 0
	})
	await(t, "pods elsewhere", func(ctx context.Context) bool {
		d, err := p.client.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		return err == nil && d.Status.Replicas == 6
	})
}

func makeNode(t *testing.T, p *plane, name string) {
	t.Helper()
	node, err := p.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{corev1.LabelHostname: name},
	}}, metav1.CreateOptions{})
	check(t, err)
	node.Status.Capacity = corev1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("110")}
	node.Status.Allocatable = node.Status.Capacity
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	_, err = p.client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	check(t, err)
}

// serve makes a Deployment and a Service and waits until its pods are ready.
func serve(t *testing.T, p *plane, name string, replicas int32) {
	t.Helper()
	labels := map[string]string{"app": name}
	_, err := p.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(80)}}},
	}, metav1.CreateOptions{})
	check(t, err)
	_, err = p.client.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers: []corev1.Container{{Name: "c", Image: "none"}},
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
					}},
				},
			},
		},
	}, metav1.CreateOptions{})
	check(t, err)
	await(t, "pods of "+name, func(ctx context.Context) bool {
		bound := 0
		for _, pod := range podsByName(t, p, name) {
			if pod.Spec.NodeName != "" {
				bound++
			}
		}
		return bound == int(replicas)
	})
	actAsKubelet(t, p, name)
	awaitEndpoints(t, p, name, func(ready map[string]int) bool {
		sum := 0
		for _, n := range ready {
			sum += n
		}
		return sum == int(replicas)
	})
}

// actAsKubelet says that the pods of name run and are ready.
func actAsKubelet(t *testing.T, p *plane, name string) {
	t.Helper()
	i := 0
	for _, pod := range podsByName(t, p, name) {
		if pod.DeletionTimestamp != nil || pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodRunning {
			continue
		}
		i++
		ip := fmt.Sprintf("10.42.%d.%d", len(name), i)
		data, err := json.Marshal(map[string]any{"status": map[string]any{
			"phase": "Running", "podIP": ip, "podIPs": []map[string]string{{"ip": ip}},
			"conditions": []map[string]string{
				{"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
				{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
			},
		}})
		check(t, err)
		_, err = p.client.CoreV1().Pods("default").Patch(t.Context(), pod.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
		check(t, err)
	}
}

func podsByName(t *testing.T, p *plane, name string) map[string]*corev1.Pod {
	t.Helper()
	list, err := p.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
	check(t, err)
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out
}

// awaitEndpoints waits until the ready endpoints of a Service, counted by node,
// are as is wants them.
func awaitEndpoints(t *testing.T, p *plane, service string, is func(ready map[string]int) bool) {
	t.Helper()
	await(t, "endpoints of "+service, func(ctx context.Context) bool {
		list, err := p.client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
		if err != nil {
			return false
		}
		ready := map[string]int{}
		for i := range list.Items {
			for _, e := range list.Items[i].Endpoints {
				if *e.Conditions.Ready {
					ready[*e.NodeName]++
				}
			}
		}
		return is(ready)
	})
}

func sameStatus(t *testing.T, before, after map[string]*corev1.Pod) {
	t.Helper()
	for name, pod := range before {
		now := after[name]
		if now == nil || now.UID != pod.UID || now.DeletionTimestamp != nil || fmt.Sprint(now.Status.Conditions) != fmt.Sprint(pod.Status.Conditions) {
			t.Errorf("%s has changed:\n%+v\n%+v", name, pod.Status.Conditions, now)
		}
	}
}

func tainted(ctx context.Context, t *testing.T, p *plane, name, key string) bool {
	t.Helper()
	node, err := p.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false
	}
	for _, taint := range node.Spec.Taints {
		if taint.Key == key {
			return true
		}
	}
	return false
}
