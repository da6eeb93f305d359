package balance

import (
	"net"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/mootkube/moot/ebpf"
)

// place is what a plan depends on beside the Service itself.
type place struct {
	node   string
	labels map[string]string // of the node, as far as topology goes
	ipv6   bool              // the family that is planned
	// home says where a Service that this daemon serves is led, nil for others.
	home *homeward
}

// homeward is where clients of a [Home] are led for now.
type homeward struct {
	own   []netip.AddrPort // this node's servers, where the slices do not tell
	addrs []netip.Addr     // this node's addresses, by which its endpoints are told from others'
	away  bool             // this node does not serve: others are to
}

// protocolOf returns false for what is not balanced.
func protocolOf(p corev1.Protocol) (ebpf.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return ebpf.TCP, true
	case corev1.ProtocolUDP:
		return ebpf.UDP, true
	}
	return 0, false
}

// plan returns the frontends of one port of a Service in one family.
//
// From inside (sockets on this node) every address of the Service leads to the
// backends of the whole cluster, also where externalTrafficPolicy is Local, as
// kube-proxy does; internalTrafficPolicy counts for the cluster's own address.
// From outside, the cluster's address is not served: only what is meant for it.
func plan(name proxy.ServicePortName, info proxy.ServicePort, endpoints []proxy.Endpoint, at place) map[ebpf.Frontend]ebpf.Service {
	protocol, ok := protocolOf(info.Protocol())
	if !ok {
		return nil
	}
	cluster, local, _, anywhere := proxy.CategorizeEndpoints(endpoints, info, at.node, at.labels)
	inside := cluster
	if info.InternalPolicyLocal() {
		inside = local
	}
	base := ebpf.Service{Name: name.String()}
	if info.SessionAffinityType() == corev1.ServiceAffinityClientIP {
		base.Affinity = time.Duration(info.StickyMaxAgeSeconds()) * time.Second
	}
	out := map[ebpf.Frontend]ebpf.Service{}
	add := func(addr netip.Addr, port int, side ebpf.Side, s ebpf.Service) {
		if addr.IsValid() && addr.Is6() == at.ipv6 && port > 0 && port <= 65535 {
			out[ebpf.Frontend{Addr: netip.AddrPortFrom(addr, uint16(port)), Protocol: protocol, Side: side}] = s
		}
	}
	to := func(endpoints []proxy.Endpoint) ebpf.Service {
		s := base
		s.Backends = backendsOf(endpoints, at.ipv6)
		return s
	}

	own := to(inside)
	// A Service that is Local here and lives elsewhere is not refused but
	// silent, as kube-proxy has it: somebody else may answer.
	own.Drop = info.InternalPolicyLocal() && len(inside) == 0 && anywhere
	if at.home != nil {
		own = at.home.lead(own, endpoints, at.ipv6)
	}
	add(addrOf(info.ClusterIP()), info.Port(), ebpf.Inside, own)
	if !info.ExternallyAccessible() {
		return out
	}
	near := to(cluster)
	far := near
	if info.ExternalPolicyLocal() {
		far = to(local)
		far.Drop = len(local) == 0 && anywhere
	}
	if protocol == ebpf.UDP {
		// kube-proxy leaves flows of datagrams with who serves, whatever a Service's
		// policies say by now.
		serving := slices.DeleteFunc(slices.Clone(endpoints), func(e proxy.Endpoint) bool { return !e.IsServing() })
		far.Draining = backendsOf(serving, at.ipv6)
	}
	anyAddr := netip.IPv4Unspecified()
	if at.ipv6 {
		anyAddr = netip.IPv6Unspecified()
	}
	add(anyAddr, info.NodePort(), ebpf.Inside, near)
	add(anyAddr, info.NodePort(), ebpf.Outside, far)
	for _, ip := range info.ExternalIPs() {
		add(addrOf(ip), info.Port(), ebpf.Inside, near)
		add(addrOf(ip), info.Port(), ebpf.Outside, far)
	}
	sources := prefixesOf(info.LoadBalancerSourceRanges())
	for _, ip := range info.LoadBalancerVIPs() {
		guarded := far
		guarded.Sources = sources
		add(addrOf(ip), info.Port(), ebpf.Outside, guarded)
		if len(sources) == 0 {
			// Else who asks is seen by its packets only: they go out to the
			// address and come back from outside, where the ranges are held.
			add(addrOf(ip), info.Port(), ebpf.Inside, near)
		}
	}
	return out
}

// lead makes the Service's own address lead to this node, or away from it.
func (h *homeward) lead(s ebpf.Service, endpoints []proxy.Endpoint, ipv6 bool) ebpf.Service {
	var here, there []ebpf.Backend
	for _, own := range h.own {
		if own.Addr().Is6() == ipv6 {
			here = append(here, ebpf.Backend{Addr: own, Local: true})
		}
	}
	for _, e := range endpoints {
		if !e.IsReady() {
			continue
		}
		b := backendsOf([]proxy.Endpoint{e}, ipv6)
		switch {
		case !e.IsLocal() && !h.isOwn(e):
			there = append(there, b...)
		case len(h.own) == 0:
			here = append(here, b...)
		}
	}
	first, second := here, there
	if h.away {
		first, second = there, here
	}
	if len(first) == 0 {
		first = second
	}
	s.Backends, s.Drop = first, false
	return s
}

func (h *homeward) isOwn(e proxy.Endpoint) bool {
	addr, err := netip.ParseAddr(e.IP())
	return err == nil && slices.Contains(h.addrs, addr)
}

// backendsOf leaves out what is not an address of the family.
func backendsOf(endpoints []proxy.Endpoint, ipv6 bool) []ebpf.Backend {
	var out []ebpf.Backend
	for _, e := range endpoints {
		addr, err := netip.ParseAddr(e.IP())
		if err != nil || addr.Unmap().Is6() != ipv6 || e.Port() < 1 || e.Port() > 65535 {
			continue
		}
		out = append(out, ebpf.Backend{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(e.Port())), Local: e.IsLocal()})
	}
	return out
}

func addrOf(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func prefixesOf(nets []*net.IPNet) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nets {
		if addr := addrOf(n.IP); addr.IsValid() {
			ones, bits := n.Mask.Size()
			if addr.Is4() && bits == 128 {
				ones -= 96
			}
			if p := netip.PrefixFrom(addr, ones); p.IsValid() {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}
