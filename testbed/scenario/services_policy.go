package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mootkube/moot/testbed/caller"
)

func (s *shop) service(ctx context.Context, name string) (*corev1.Service, error) {
	c, err := s.Client(s.via)
	if err != nil {
		return nil, err
	}
	return c.CoreV1().Services(s.name).Get(ctx, name, metav1.GetOptions{})
}

// sticky keeps each client on one pod, through each address.
func (s *shop) sticky(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "sticky", "web", corev1.ServiceTypeNodePort, func(spec *corev1.ServiceSpec) {
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
	})
	if err != nil {
		return "", err
	}
	var errs []error
	var out []string
	for _, from := range []place{s.pod, s.hosts[0], s.outside} {
		to := s.nodePorts(svc.Spec.Ports[0].NodePort)
		if from.name != s.outside.name {
			to = []string{at(svc.Spec.ClusterIP, 80)}
		}
		if err := s.soonAnswered(ctx, from, false, to...); err != nil {
			errs = append(errs, err)
			continue
		}
		reports, err := from.ask(ctx, question{tries: s.tries}, to...)
		if err != nil {
			return "", err
		}
		errs = append(errs, from.answered(reports))
		for _, r := range reports {
			if len(r.Pods) != 1 {
				errs = append(errs, fmt.Errorf("from %s through %s: %v", from.name, r.Target, r.Pods))
			}
		}
		out = append(out, fmt.Sprintf("from %s through %d addresses to %d pod", from.name, len(to), len(total(reports, podsOf))))
	}
	return strings.Join(out, ", "), errors.Join(errs...)
}

// edge has one pod, on the first node: there packets from outside are answered,
// with their source kept, and the health check port says so; elsewhere they get
// no answer. Clients inside reach it from everywhere.
func (s *shop) edge(ctx context.Context) (string, error) {
	if err := s.runPod(ctx, "edge", s.Nodes[0], nil); err != nil {
		return "", err
	}
	svc, err := s.expose(ctx, "edge", "edge", corev1.ServiceTypeLoadBalancer, func(spec *corev1.ServiceSpec) {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	if err != nil {
		return "", err
	}
	if err := errors.Join(s.balanced(ctx, svc, edgeIP), s.route(edgeIP, s.Nodes[0]), s.podReady(ctx, "edge")); err != nil {
		return "", err
	}
	ports := s.nodePorts(svc.Spec.Ports[0].NodePort)
	near := []string{ports[0], at(edgeIP, 80)}
	if err := s.soonAnswered(ctx, s.outside, false, near...); err != nil {
		return "", err
	}
	got, err := s.outside.ask(ctx, question{tries: s.tries}, near...)
	if err != nil {
		return "", err
	}
	errs := []error{s.outside.answered(got)}
	if seen := slices.Sorted(maps.Keys(total(got, clientsOf))); !slices.Equal(seen, []string{s.machine.Addr.String()}) {
		errs = append(errs, fmt.Errorf("the source is not kept: seen from %v, not %s", seen, s.machine.Addr))
	}
	far, err := s.outside.ask(ctx, question{tries: 3, timeout: time.Second}, ports[1:]...)
	if err != nil {
		return "", err
	}
	errs = append(errs, s.outside.silent(far...))
	for _, from := range append([]place{s.pod}, s.hosts...) {
		errs = append(errs, s.soonAnswered(ctx, from, false, at(svc.Spec.ClusterIP, 80), at(edgeIP, 80), ports[0]))
	}
	health, err := s.health(ctx, svc.Spec.HealthCheckNodePort)
	errs = append(errs, err)
	return fmt.Sprintf("answered at %s alone, source %s kept; inside from everywhere; health checks %s", s.Nodes[0], s.machine.Addr, health), errors.Join(errs...)
}

// health asks the health check port of each node from outside: 200 on the first
// node, which has a pod, 503 on the others.
func (s *shop) health(ctx context.Context, port int32) (string, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       s.machine.Dial,
	}}
	var out []string
	var errs []error
	for i, node := range s.Nodes {
		want := http.StatusServiceUnavailable
		if i == 0 {
			want = http.StatusOK
		}
		code := 0
		errs = append(errs, s.soon(ctx, "health check of "+node, func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at(s.addrs[node].String(), port)+"/healthz", nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			code = resp.StatusCode
			if err := resp.Body.Close(); err != nil || code == want {
				return err
			}
			return fmt.Errorf("%s, not %d", resp.Status, want)
		}))
		out = append(out, fmt.Sprintf("%s %d", node, code))
	}
	return strings.Join(out, ", "), errors.Join(errs...)
}

// inner is the same pod for those who ask on its node, and nobody's else.
func (s *shop) inner(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "inner", "edge", corev1.ServiceTypeClusterIP, func(spec *corev1.ServiceSpec) {
		local := corev1.ServiceInternalTrafficPolicyLocal
		spec.InternalTrafficPolicy = &local
	})
	if err != nil {
		return "", err
	}
	to := at(svc.Spec.ClusterIP, 80)
	if err := s.soonAnswered(ctx, s.hosts[0], false, to); err != nil {
		return "", err
	}
	var errs []error
	how := map[string]int{}
	for _, from := range append([]place{s.pod}, s.hosts[1:]...) {
		err := s.soon(ctx, "away from "+from.name, func(ctx context.Context) error {
			r, err := from.askOne(ctx, question{tries: 3, timeout: time.Second}, to)
			if err != nil {
				return err
			}
			for e, n := range r.Errors {
				how[e] += n
			}
			return from.silent(r)
		})
		errs = append(errs, err)
	}
	return fmt.Sprintf("answered on %s alone; elsewhere %v", s.Nodes[0], how), errors.Join(errs...)
}

// fenced lets in the ranges it names only.
func (s *shop) fenced(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "fenced", "web", corev1.ServiceTypeLoadBalancer, func(spec *corev1.ServiceSpec) {
		spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"}
	})
	if err != nil {
		return "", err
	}
	if err := errors.Join(s.balanced(ctx, svc, fencedIP), s.route(fencedIP, s.Nodes[1])); err != nil {
		return "", err
	}
	// Its cluster address shows when the node has it.
	if err := s.soonAnswered(ctx, s.hosts[1], false, at(svc.Spec.ClusterIP, 80)); err != nil {
		return "", err
	}
	r, err := s.outside.askOne(ctx, question{tries: 3, timeout: time.Second}, at(fencedIP, 80))
	if err != nil {
		return "", err
	}
	errs := []error{s.outside.silent(r)}
	if err := s.patchService(ctx, "fenced", fmt.Sprintf(`{"spec":{"loadBalancerSourceRanges":["%s/32"]}}`, s.machine.Addr)); err != nil {
		return "", err
	}
	errs = append(errs, s.soonAnswered(ctx, s.outside, false, at(fencedIP, 80)))
	return fmt.Sprintf("kept out %v, and let in when named", r.Errors), errors.Join(errs...)
}

// headless is a name for the pods' own addresses.
func (s *shop) headless(ctx context.Context) (string, error) {
	_, err := s.expose(ctx, "bare", "web", corev1.ServiceTypeClusterIP, func(spec *corev1.ServiceSpec) {
		spec.ClusterIP = corev1.ClusterIPNone
	})
	if err != nil {
		return "", err
	}
	pods, err := s.pods(ctx, s.via, "web")
	if err != nil {
		return "", err
	}
	var want []string
	for _, p := range pods {
		want = append(want, p.Status.PodIP)
	}
	slices.Sort(want)
	name := "bare." + s.name + ".svc.cluster.local"
	began := time.Now()
	err = s.soon(ctx, "resolve "+name, func(ctx context.Context) error {
		out, err := s.pod.run(ctx, "lookup", name)
		if err != nil {
			return err
		}
		if got := strings.Fields(out); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
	took := time.Since(began)
	if err != nil {
		return "", err
	}
	r, err := s.pod.askOne(ctx, question{tries: 10}, net.JoinHostPort(name, "8080"))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the name gave all %d pods after %s", len(want), seconds(took)), s.pod.answered([]caller.Report{r})
}

// turn makes a NodePort Service a ClusterIP one and back while it is used
// through its cluster address.
func (s *shop) turn(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "turn", "web", corev1.ServiceTypeNodePort, nil)
	if err != nil {
		return "", err
	}
	port, cluster := s.nodePorts(svc.Spec.Ports[0].NodePort), at(svc.Spec.ClusterIP, 80)
	if err := errors.Join(s.soonAnswered(ctx, s.outside, false, port...), s.soonAnswered(ctx, s.hosts[0], false, append(port, cluster)...)); err != nil {
		return "", err
	}
	during := make(chan error, 1)
	go func() {
		r, err := s.hosts[0].askOne(ctx, question{tries: 1000}, cluster) // five seconds
		if err == nil {
			err = s.hosts[0].answered([]caller.Report{r})
		}
		during <- err
	}()
	began := time.Now()
	if err := s.patchService(ctx, "turn", `{"spec":{"type":"ClusterIP"}}`); err != nil {
		return "", errors.Join(err, <-during)
	}
	var errs []error
	for _, from := range []place{s.outside, s.hosts[0]} {
		errs = append(errs, s.soon(ctx, "node port gone for "+from.name, func(ctx context.Context) error {
			reports, err := from.ask(ctx, question{tries: 2, timeout: time.Second}, port...)
			if err != nil {
				return err
			}
			return from.silent(reports...)
		}))
	}
	gone := time.Since(began)
	if err := s.patchService(ctx, "turn", `{"spec":{"type":"NodePort"}}`); err != nil {
		return "", errors.Join(err, <-during)
	}
	if svc, err = s.service(ctx, "turn"); err != nil {
		return "", errors.Join(err, <-during)
	}
	errs = append(errs, s.soonAnswered(ctx, s.outside, false, s.nodePorts(svc.Spec.Ports[0].NodePort)...), <-during)
	return fmt.Sprintf("NodePort to ClusterIP: no node port was answered after %s; and back; 1000 tries through the ClusterIP meanwhile", seconds(gone)), errors.Join(errs...)
}

// sctp is not balanced, and the Service is told so.
func (s *shop) sctp(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "sctp", "web", corev1.ServiceTypeClusterIP, func(spec *corev1.ServiceSpec) {
		spec.Ports[0].Protocol = corev1.ProtocolSCTP
	})
	if err != nil {
		return "", err
	}
	c, err := s.Client(s.via)
	if err != nil {
		return "", err
	}
	told := ""
	err = s.soon(ctx, "an Event on the Service", func(ctx context.Context) error {
		events, err := c.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(svc.UID)})
		if err != nil {
			return err
		}
		if len(events.Items) == 0 {
			return errors.New("there is none")
		}
		told = fmt.Sprintf("%d Event: %s: %s", len(events.Items), events.Items[0].Reason, events.Items[0].Message)
		return nil
	})
	return told, err
}
