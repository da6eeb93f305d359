package cni

import (
	"net"
	"testing"
)

// TestHostPorts tries every way to a host port: protocols, families, one address
// or all, from outside, from the node, from another pod and from the pod itself.
func TestHostPorts(t *testing.T) {
	l := newLab(t)
	l.sh("ip -n %s addr add 192.0.2.9/24 dev wire", l.node)
	l.sh("ip -n %s addr add 2001:db8::9/64 dev wire nodad", l.node)
	a, b := l.node+"-a", l.node+"-b"
	ports := l.withPorts(
		PortMapping{HostPort: 8000, ContainerPort: 80, Protocol: "TCP"},
		PortMapping{HostPort: 8000, ContainerPort: 81, Protocol: "UDP"},
		PortMapping{HostPort: 8001, ContainerPort: 80, Protocol: "TCP", HostIP: nodeAddr},
		PortMapping{HostPort: 8001, ContainerPort: 81, Protocol: "UDP", HostIP: nodeAddr6},
		PortMapping{HostPort: 53, ContainerPort: 81, Protocol: "UDP"},
	)
	aAddr, _ := l.add(a, l.config), l.add(b, ports)
	l.serve(b, ":80")
	l.start(b, "serve-udp :81")

	for i, node := range []string{nodeAddr, nodeAddr6} {
		outside := []string{outsideAddr, outsideAddr6}[i]
		gateway := []string{"10.42.7.1", "fd42:7::1"}[i]
		tcp, udp := "http://"+net.JoinHostPort(node, "8000")+"/", net.JoinHostPort(node, "8000")
		l.want("TCP from outside", l.get(l.outside, tcp), outside)
		l.want("UDP from outside", l.ask(l.outside, udp), outside)
		l.want("TCP from a pod", l.get(a, tcp), aAddr[i])
		l.want("UDP from a pod", l.ask(a, udp), aAddr[i])
		// The pod would answer itself, past the node, were its own address kept.
		l.want("TCP from the pod itself", l.get(b, tcp), gateway)
		l.want("UDP from the pod itself", l.ask(b, udp), gateway)
		for _, got := range []string{l.get(l.node, tcp), l.ask(l.node, udp)} {
			if got != node {
				t.Errorf("from the node itself: server saw %q, want %q", got, node)
			}
		}
	}
	// An address of its own.
	l.want("TCP of one address", l.get(l.outside, "http://"+nodeAddr+":8001/"), outsideAddr)
	l.want("UDP of one address", l.ask(l.outside, "["+nodeAddr6+"]:8001"), outsideAddr6)
	l.refused(l.outside, "get http://192.0.2.9:8001/")
	l.refused(l.outside, "get http://["+nodeAddr6+"]:8001/")
	l.refused(l.outside, "ask-udp [2001:db8::9]:8001")
	l.refused(l.outside, "ask-udp "+nodeAddr+":8001")

	// Port 53 of the node is the pod's. That of the gateway, where pods ask for
	// names, is not.
	l.want("port 53 of the node", l.ask(l.outside, nodeAddr+":53"), outsideAddr)
	for i, gateway := range []string{"10.42.7.1", "fd42:7::1"} {
		l.start(l.node, "serve-udp "+net.JoinHostPort(gateway, "53"))
		l.want("port 53 of the gateway", l.ask(a, net.JoinHostPort(gateway, "53")), aAddr[i])
	}
	for _, pod := range []string{a, b} {
		if _, err := l.call("DEL", pod, ports); err != nil {
			t.Error(err)
		}
	}
	l.wantClean()
}

func (l *lab) refused(ns, what string) {
	l.t.Helper()
	if out, err := l.in(ns, what).CombinedOutput(); err == nil {
		l.t.Errorf("%s from %s: answered %q", what, ns, out)
	}
}
