package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/testbed/caller"
)

// everywhere asks the Service of all kinds through all its addresses.
func (s *shop) everywhere(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "web", "web", corev1.ServiceTypeLoadBalancer, func(spec *corev1.ServiceSpec) {
		spec.ExternalIPs = []string{externalIP}
		spec.Ports = []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromString("http")},
			{Name: "other", Port: 81, TargetPort: intstr.FromString("other")},
			{Name: "datagrams", Port: 80, TargetPort: intstr.FromString("datagrams"), Protocol: corev1.ProtocolUDP},
		}
	})
	if err != nil {
		return "", err
	}
	if err := s.balanced(ctx, svc, balancedIP); err != nil {
		return "", err
	}
	var all []error
	var asked []caller.Report
	for _, from := range append([]place{s.pod}, s.hosts...) {
		got, err := s.allAddresses(ctx, from, svc, at(svc.Spec.ClusterIP, 80), at(balancedIP, 80), at(externalIP, 80))
		all, asked = append(all, err), append(asked, got...)
	}
	// From outside, by way of each node in turn.
	for _, node := range s.Nodes {
		if err := errors.Join(s.route(balancedIP, node), s.route(externalIP, node)); err != nil {
			return "", err
		}
		got, err := s.allAddresses(ctx, s.outside, svc, at(balancedIP, 80), at(externalIP, 80))
		if err != nil {
			err = fmt.Errorf("by way of %s: %w", node, err)
		}
		all, asked = append(all, err), append(asked, got...)
	}
	tries, slowest := 0, time.Duration(0)
	for _, r := range asked {
		tries, slowest = tries+r.Tries, max(slowest, r.Longest)
	}
	return fmt.Sprintf("ClusterIP, node ports, load balancer and external IP, TCP and UDP, from a pod, %d nodes and outside by way of each: %d tries of %d pairs, none failed, slowest %s",
		len(s.Nodes), tries, len(asked), millis(slowest)), errors.Join(all...)
}

// allAddresses asks node ports and the given addresses from one place, over TCP
// and UDP; behind each protocol every pod has to answer.
func (s *shop) allAddresses(ctx context.Context, from place, svc *corev1.Service, addresses ...string) ([]caller.Report, error) {
	var all []caller.Report
	var errs []error
	for _, udp := range []bool{false, true} {
		port := svc.Spec.Ports[0].NodePort
		if udp {
			port = svc.Spec.Ports[2].NodePort
		}
		to := append(s.nodePorts(port), addresses...)
		if err := s.soonAnswered(ctx, from, udp, to...); err != nil {
			errs = append(errs, fmt.Errorf("UDP %t: %w", udp, err))
			continue
		}
		reports, err := from.ask(ctx, question{tries: s.tries, udp: udp}, to...)
		if err != nil {
			return all, err
		}
		err = from.answered(reports)
		if pods := total(reports, podsOf); err == nil && len(pods) != backends {
			err = fmt.Errorf("from %s, UDP %t: answers by %v alone", from.name, udp, pods)
		}
		all, errs = append(all, reports...), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// evenly looks at how answers are spread over the pods, of connections made
// inside, where each is drawn, and from outside, where a table decides.
func (s *shop) evenly(ctx context.Context) (string, error) {
	svc, err := s.service(ctx, "web")
	if err != nil {
		return "", err
	}
	var out strings.Builder
	var errs []error
	for _, c := range []struct {
		from place
		to   string
	}{
		{s.pod, at(svc.Spec.ClusterIP, 80)},
		{s.hosts[0], at(svc.Spec.ClusterIP, 80)},
		{s.outside, s.nodePorts(svc.Spec.Ports[0].NodePort)[0]},
	} {
		r, err := c.from.askOne(ctx, question{tries: s.even}, c.to)
		if err != nil {
			return "", err
		}
		errs = append(errs, c.from.answered([]caller.Report{r}))
		var counts []int
		for _, n := range r.Pods {
			counts = append(counts, n)
		}
		slices.Sort(counts)
		chi2, p, err := unevenness(counts)
		switch {
		case err != nil:
		case len(counts) != backends:
			err = fmt.Errorf("from %s: %d pods of %d ever answered: %v", c.from.name, len(counts), backends, r.Pods)
		case p < 1e-6:
			err = fmt.Errorf("from %s: %v, chi-square %.1f, p %.2g", c.from.name, counts, chi2, p)
		}
		errs = append(errs, err)
		fmt.Fprintf(&out, "from %s %v chi-square %.1f p %.2g; ", c.from.name, counts, chi2, p)
	}
	return out.String(), errors.Join(errs...)
}

// ports looks whether each port leads to the container's port of that name.
func (s *shop) ports(ctx context.Context) (string, error) {
	svc, err := s.service(ctx, "web")
	if err != nil {
		return "", err
	}
	var errs []error
	for _, from := range []place{s.pod, s.hosts[0], s.outside} {
		to := []string{at(svc.Spec.ClusterIP, 80), at(svc.Spec.ClusterIP, 81)}
		if from.name == s.outside.name {
			to = []string{s.nodePorts(svc.Spec.Ports[0].NodePort)[1], s.nodePorts(svc.Spec.Ports[1].NodePort)[1]}
		}
		reports, err := from.ask(ctx, question{tries: 10}, to...)
		if err != nil {
			return "", err
		}
		errs = append(errs, from.answered(reports))
		for i, want := range []string{"8080", "9090"} {
			if got := reports[i].Ports; got[want] != 10 {
				errs = append(errs, fmt.Errorf("from %s, port %d: container ports %v", from.name, 80+i, got))
			}
		}
	}
	return "80 leads to http 8080, 81 to other 9090, from a pod, a node and outside", errors.Join(errs...)
}

// hairpin lets a pod ask itself through a Service.
func (s *shop) hairpin(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "mirror", s.asker, corev1.ServiceTypeNodePort, nil)
	if err != nil {
		return "", err
	}
	to := append(s.nodePorts(svc.Spec.Ports[0].NodePort), at(svc.Spec.ClusterIP, 80))
	if err := s.soonAnswered(ctx, s.pod, false, to...); err != nil {
		return "", err
	}
	reports, err := s.pod.ask(ctx, question{tries: s.tries}, to...)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d tries through the ClusterIP and each node's port, seen from %v", len(to)*s.tries, slices.Sorted(maps.Keys(total(reports, clientsOf)))), s.pod.answered(reports)
}

// hosted has a backend that listens on a node's own address.
func (s *shop) hosted(ctx context.Context) (string, error) {
	const port = 18080
	err := s.runPod(ctx, "hosted", s.Nodes[1], func(spec *corev1.PodSpec) {
		spec.HostNetwork = true
		spec.Containers[0].Args = []string{"serve", "--addr", fmt.Sprintf(":%d", port)}
		spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromInt32(port)
	})
	if err != nil {
		return "", err
	}
	svc, err := s.expose(ctx, "hosted", "hosted", corev1.ServiceTypeNodePort, func(spec *corev1.ServiceSpec) {
		spec.Ports[0].TargetPort = intstr.FromInt32(port)
	})
	if err != nil {
		return "", err
	}
	if err := s.podReady(ctx, "hosted"); err != nil {
		return "", err
	}
	var errs []error
	tries := 0
	for _, from := range append([]place{s.pod, s.outside}, s.hosts...) {
		to := s.nodePorts(svc.Spec.Ports[0].NodePort)
		if from.name != s.outside.name {
			to = append(to, at(svc.Spec.ClusterIP, 80))
		}
		if err := s.soonAnswered(ctx, from, false, to...); err != nil {
			errs = append(errs, err)
			continue
		}
		reports, err := from.ask(ctx, question{tries: s.tries}, to...)
		if err != nil {
			return "", err
		}
		tries += len(to) * s.tries
		errs = append(errs, from.answered(reports))
	}
	return fmt.Sprintf("%d tries from everywhere to %s's port %d", tries, s.Nodes[1], port), errors.Join(errs...)
}

// twoWays reaches a pod through the node port of its own node and then by its
// own address, or the ClusterIP, from the same port: what is kept of the first
// connection must not meddle with the second.
func (s *shop) twoWays(ctx context.Context) (string, error) {
	if err := s.runPod(ctx, "second", s.Nodes[1], nil); err != nil {
		return "", err
	}
	svc, err := s.expose(ctx, "second", "second", corev1.ServiceTypeNodePort, nil)
	if err != nil {
		return "", err
	}
	if err := s.podReady(ctx, "second"); err != nil {
		return "", err
	}
	nodePort, cluster := s.nodePorts(svc.Spec.Ports[0].NodePort)[1], at(svc.Spec.ClusterIP, 80)
	var errs []error
	asked := 0
	for _, from := range []place{s.hosts[0], s.pod} {
		if err := s.soonAnswered(ctx, from, false, nodePort, cluster); err != nil {
			errs = append(errs, err)
			continue
		}
		for port := 20001; port <= 20005; port++ {
			for _, to := range []string{nodePort, cluster, nodePort} {
				r, err := from.askOne(ctx, question{tries: 1, port: port}, to)
				if err != nil {
					return "", err
				}
				asked++
				if err := from.answered([]caller.Report{r}); err != nil {
					errs = append(errs, fmt.Errorf("from port %d: %w", port, err))
				}
			}
		}
	}
	return fmt.Sprintf("%d connections from the same ports through %s and %s", asked, nodePort, cluster), errors.Join(errs...)
}

// empty has nobody behind it: who asks is refused, and need not wait.
func (s *shop) empty(ctx context.Context) (string, error) {
	svc, err := s.expose(ctx, "empty", "nobody", corev1.ServiceTypeNodePort, nil)
	if err != nil {
		return "", err
	}
	var errs []error
	for _, from := range append([]place{s.pod, s.outside}, s.hosts...) {
		to := s.nodePorts(svc.Spec.Ports[0].NodePort)
		if from.name != s.outside.name {
			to = append(to, at(svc.Spec.ClusterIP, 80))
		}
		errs = append(errs, s.soon(ctx, "refused to "+from.name, func(ctx context.Context) error {
			reports, err := from.ask(ctx, question{tries: 3, timeout: time.Second}, to...)
			if err != nil {
				return err
			}
			for _, r := range reports {
				if r.Errors["connection refused"] != r.Tries {
					return fmt.Errorf("%s: %v", r.Target, r.Errors)
				}
			}
			return nil
		}))
	}
	return "refused at once, through ClusterIP and node ports, from everywhere", errors.Join(errs...)
}

// proxied asks every API server for every pod, and for the Service.
func (s *shop) proxied(ctx context.Context) (string, error) {
	pods, err := s.pods(ctx, s.via, "web")
	if err != nil {
		return "", err
	}
	var g errgroup.Group
	for _, node := range s.Nodes {
		c, err := s.Client(node)
		if err != nil {
			return "", err
		}
		get := func(resource, name string) error {
			one, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := c.CoreV1().RESTClient().Get().Namespace(s.name).Resource(resource).Name(name).
				SubResource("proxy").Suffix("who").DoRaw(one)
			if err != nil {
				return fmt.Errorf("the API server of %s to %s %s: %w", node, resource, name, err)
			}
			return nil
		}
		g.Go(func() error {
			var errs []error
			for _, p := range pods {
				if err := get("pods", "http:"+p.Name+":8080"); err != nil {
					errs = append(errs, fmt.Errorf("on %s: %w", p.Spec.NodeName, err))
				}
			}
			for range 2 * backends {
				errs = append(errs, get("services", "http:web:http"))
			}
			return errors.Join(errs...)
		})
	}
	return fmt.Sprintf("%d API servers to %d pods, and %d times to the Service", len(s.Nodes), len(pods), 2*backends), g.Wait()
}
