package balance

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/mootkube/moot/ebpf"
)

// condition is how an endpoint was when last looked at.
type condition struct {
	usable      bool // takes new connections, or drains
	terminating bool
}

// endpoints is what a Service's endpoints were, by address and protocol.
type endpoints map[ebpf.Target]condition

// conditionsOf lists the endpoints of one port.
func (e endpoints) add(protocol ebpf.Protocol, list []proxy.Endpoint) {
	for _, ep := range list {
		addr, err := netip.ParseAddr(ep.IP())
		if err != nil || ep.Port() < 1 || ep.Port() > 65535 {
			continue
		}
		target := ebpf.Target{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(ep.Port())), Protocol: protocol}
		have := e[target]
		e[target] = condition{
			usable:      have.usable || ep.IsReady() || ep.IsServing(),
			terminating: have.terminating || ep.IsTerminating(),
		}
	}
}

// ended lists the endpoints whose sockets lead nowhere now. A UDP socket does
// not notice when its backend stops: it goes as soon as the endpoint is of no
// use, as kube-proxy forgets such flows. A TCP connection drains; it is ended
// only when the pod was on its way out and is gone.
func ended(before, now endpoints) []ebpf.Target {
	var out []ebpf.Target
	for target, was := range before {
		is, there := now[target]
		switch {
		case target.Protocol == ebpf.UDP && was.usable && !is.usable:
			out = append(out, target)
		case target.Protocol == ebpf.TCP && !there && was.terminating:
			out = append(out, target)
		}
	}
	return out
}

// stillServed leaves out what an endpoint of another Service is.
func stillServed(targets []ebpf.Target, all map[types.NamespacedName]endpoints) []ebpf.Target {
	var out []ebpf.Target
	for _, t := range targets {
		used := false
		for _, e := range all {
			if c, ok := e[t]; ok && (c.usable || t.Protocol == ebpf.TCP) {
				used = true
				break
			}
		}
		if !used {
			out = append(out, t)
		}
	}
	return out
}
