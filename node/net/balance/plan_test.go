package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mootkube/moot/ebpf"
)

// web is a Service with a port, as the API hands it out; edit changes it.
func web(edit func(*corev1.ServiceSpec)) *corev1.Service {
	cluster, clusterInside := corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyCluster
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.9", ClusterIPs: []string{"10.43.0.9"},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, SessionAffinity: corev1.ServiceAffinityNone,
			InternalTrafficPolicy: &clusterInside,
			Ports:                 []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	if edit != nil {
		edit(&s.Spec)
		if s.Spec.Type != corev1.ServiceTypeClusterIP && s.Spec.ExternalTrafficPolicy == "" {
			s.Spec.ExternalTrafficPolicy = cluster
		}
	}
	return s
}

// pod is an endpoint: "n1", "n2 unready", "n2 draining", "n1 zone=a".
func slice(protocol corev1.Protocol, pods ...string) *discoveryv1.EndpointSlice {
	name, port, yes, no := "http", int32(8080), true, false
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for i, pod := range pods {
		words := strings.Fields(pod)
		e := discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.42.0.%d", i+1)}, NodeName: &words[0],
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		}
		for _, w := range words[1:] {
			switch zone, isZone := strings.CutPrefix(w, "zone="); {
			case isZone:
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
			case w == "unready":
				e.Conditions.Ready, e.Conditions.Serving = &no, &no
			case w == "draining":
				e.Conditions.Ready, e.Conditions.Terminating = &no, &yes
			case w == "ending":
				e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating = &no, &no, &yes
			}
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out
}

// text shows frontends, a line each: address, side, backends by their last byte.
func text(fronts map[ebpf.Frontend]ebpf.Service) string {
	var lines []string
	for f, s := range fronts {
		var to []string
		for _, b := range sorted(s.Backends) {
			at := fmt.Sprint(b.Addr.Addr().As4()[3])
			if b.Addr.Addr().As4()[2] != 0 {
				at = b.Addr.String()
			}
			if b.Local {
				at += "*"
			}
			to = append(to, at)
		}
		for _, b := range sorted(s.Draining) {
			to = append(to, fmt.Sprintf("(%d)", b.Addr.Addr().As4()[3]))
		}
		line := fmt.Sprintf("%s: %s", f, strings.Join(to, " "))
		if len(to) == 0 {
			line = fmt.Sprintf("%s: nobody", f)
		}
		if s.Drop {
			line += ", silent"
		}
		if s.Affinity != 0 {
			line += ", stays " + s.Affinity.String()
		}
		if len(s.Sources) > 0 {
			line += fmt.Sprint(", from ", s.Sources)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestPlan(t *testing.T) {
	local, localInside := corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceInternalTrafficPolicyLocal
	for _, c := range []struct {
		name string
		edit func(*corev1.ServiceSpec)
		pods []string
		home *Home
		away bool
		want string
	}{
		{"cluster address", nil, []string{"n1", "n2", "n2 unready"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 1* 2"},
		{"nobody", nil, nil, nil, false, "TCP 10.43.0.9:80 from inside: nobody"},
		{"only draining", nil, []string{"n1 unready", "n2 draining"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 2"},
		{"internal policy", func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = &localInside }, []string{"n1", "n2"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 1*"},
		{"internal policy, none here", func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = &localInside }, []string{"n2"}, nil, false,
			"TCP 10.43.0.9:80 from inside: nobody, silent"},
		{"hints for the zone", nil, []string{"n2 zone=a", "n3 zone=b"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 1"},
		{"affinity", func(s *corev1.ServiceSpec) {
			seconds := int32(60)
			s.SessionAffinity = corev1.ServiceAffinityClientIP
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}, []string{"n1"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 1*, stays 1m0s"},
		{"node port", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080 }, []string{"n1", "n2"}, nil, false,
			"TCP 0.0.0.0:30080 from inside: 1* 2\nTCP 0.0.0.0:30080 from outside: 1* 2\nTCP 10.43.0.9:80 from inside: 1* 2"},
		{"datagrams, one drains", func(s *corev1.ServiceSpec) {
			s.Type, s.Ports[0].NodePort, s.Ports[0].Protocol = corev1.ServiceTypeNodePort, 30080, corev1.ProtocolUDP
		}, []string{"n1", "n2 draining", "n2 ending", "n2 unready"}, nil, false,
			"UDP 0.0.0.0:30080 from inside: 1*\nUDP 0.0.0.0:30080 from outside: 1* (1) (2)\nUDP 10.43.0.9:80 from inside: 1*"},
		{"node port, external policy", func(s *corev1.ServiceSpec) {
			s.Type, s.Ports[0].NodePort, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, 30080, local
		}, []string{"n1", "n2"}, nil, false,
			"TCP 0.0.0.0:30080 from inside: 1* 2\nTCP 0.0.0.0:30080 from outside: 1*\nTCP 10.43.0.9:80 from inside: 1* 2"},
		{"node port, external policy, none here", func(s *corev1.ServiceSpec) {
			s.Type, s.Ports[0].NodePort, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, 30080, local
		}, []string{"n2"}, nil, false,
			"TCP 0.0.0.0:30080 from inside: 1\nTCP 0.0.0.0:30080 from outside: nobody, silent\nTCP 10.43.0.9:80 from inside: 1"},
		{"external address", func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"192.0.2.7", "2001:db8::7"} }, []string{"n2"}, nil, false,
			"TCP 10.43.0.9:80 from inside: 1\nTCP 192.0.2.7:80 from inside: 1\nTCP 192.0.2.7:80 from outside: 1"},
		{"protocol", func(s *corev1.ServiceSpec) { s.Ports[0].Protocol = corev1.ProtocolSCTP }, []string{"n2"}, nil, false, ""},
		{"home", func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = &localInside }, []string{"n1", "n2"},
			&Home{Serving: true}, false, "TCP 10.43.0.9:80 from inside: 1*"},
		{"home elsewhere", func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = &localInside }, []string{"n1", "n2", "n3 unready"},
			&Home{Serving: true}, true, "TCP 10.43.0.9:80 from inside: 2"},
		{"home elsewhere, but nobody is", func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = &localInside }, []string{"n1"},
			&Home{Serving: true}, true, "TCP 10.43.0.9:80 from inside: 1*"},
		{"home by address", nil, []string{"n2", "n3"},
			&Home{Serving: true, Own: []netip.AddrPort{netip.MustParseAddrPort("10.0.1.1:6443")}}, false,
			"TCP 10.43.0.9:80 from inside: 10.0.1.1:6443*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := running(t, func(cfg *Config) {
				if c.home != nil {
					c.home.Service = webName()
					cfg.Homes = []Home{*c.home}
				}
			})
			p.OnTopologyChange(map[string]string{corev1.LabelTopologyZone: "a"})
			svc := web(c.edit)
			p.OnServiceAdd(svc)
			p.OnEndpointSliceAdd(slice(svc.Spec.Ports[0].Protocol, c.pods...))
			step(t, p)
			if c.away {
				if err := p.HandOver(); err != nil {
					t.Fatal(err)
				}
			}
			if got := text(p.table.all()); got != c.want {
				t.Errorf("planned\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestLoadBalancer(t *testing.T) {
	p, k := running(t, nil)
	svc := web(func(s *corev1.ServiceSpec) {
		s.Type, s.Ports[0].NodePort = corev1.ServiceTypeLoadBalancer, 30080
		s.LoadBalancerSourceRanges = []string{" 192.0.2.0/24", "2001:db8::/32"}
	})
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}, {Hostname: "lb.example.com"}}
	p.OnServiceAdd(svc)
	p.OnEndpointSliceAdd(slice(corev1.ProtocolTCP, "n2"))
	step(t, p)
	want := "TCP 0.0.0.0:30080 from inside: 1\nTCP 0.0.0.0:30080 from outside: 1\n" +
		"TCP 10.43.0.9:80 from inside: 1\nTCP 198.51.100.1:80 from outside: 1, from [192.0.2.0/24]"
	if got := text(k.holds); got != want {
		t.Errorf("with ranges\n%s\nwant\n%s", got, want)
	}
	open := svc.DeepCopy()
	open.Spec.LoadBalancerSourceRanges = nil
	p.OnServiceUpdate(svc, open)
	step(t, p)
	if got := text(k.holds); !strings.Contains(got, "198.51.100.1:80 from inside: 1") {
		t.Errorf("without ranges\n%s", got)
	}
	// Its type changes in place, and back.
	name := open.DeepCopy()
	name.Spec.Type, name.Spec.ExternalName, name.Spec.ClusterIP, name.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "example.com", "", nil
	p.OnServiceUpdate(open, name)
	step(t, p)
	if got := text(k.holds); got != "" {
		t.Errorf("as an ExternalName\n%s", got)
	}
	p.OnServiceUpdate(name, web(nil))
	step(t, p)
	if got := text(k.holds); got != "TCP 10.43.0.9:80 from inside: 1" {
		t.Errorf("as a cluster address\n%s", got)
	}
	p.OnServiceDelete(web(nil))
	step(t, p)
	if len(k.holds) != 0 || len(p.table.claims) != 0 || len(p.table.plans) != 0 || len(p.known) != 0 {
		t.Errorf("left: %v %v", k.holds, p.table)
	}
}

func webName() types.NamespacedName { return types.NamespacedName{Namespace: "shop", Name: "web"} }
