package net

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// peer is what routing needs to know of a node.
type peer struct {
	name     string
	born     time.Time
	addrs    []netip.Addr   // internal addresses
	podCIDRs []netip.Prefix // at most one per family
}

// peerOf reads a Node. Addresses and networks that do not parse are left out.
func peerOf(node *corev1.Node) peer {
	p := peer{name: node.Name, born: node.CreationTimestamp.Time}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				p.addrs = append(p.addrs, ip.Unmap())
			}
		}
	}
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 && node.Spec.PodCIDR != "" {
		cidrs = []string{node.Spec.PodCIDR}
	}
	for _, s := range cidrs {
		if cidr, err := netip.ParsePrefix(s); err == nil {
			p.podCIDRs = append(p.podCIDRs, cidr.Masked())
		}
	}
	return p
}

// routePlan is what the routing table should hold.
type routePlan struct {
	own     []netip.Prefix              // this node's pod networks
	routes  map[netip.Prefix]netip.Addr // other nodes' pod networks, by gateway
	clashes []clash
}

// clash is a pod network that two nodes claim. The older node has it.
type clash struct {
	cidr         netip.Prefix
	winner, lost string
}

// planRoutes decides from all nodes of the cluster what the node self routes
// where. The outcome does not depend on the order of peers.
func planRoutes(self string, peers []peer) routePlan {
	peers = slices.SortedFunc(slices.Values(peers), func(a, b peer) int {
		return cmp.Or(a.born.Compare(b.born), cmp.Compare(a.name, b.name))
	})
	plan := routePlan{routes: map[netip.Prefix]netip.Addr{}}
	type claim struct {
		cidr  netip.Prefix
		owner string
	}
	var claims []claim
	for _, p := range peers {
		for _, cidr := range p.podCIDRs {
			i := slices.IndexFunc(claims, func(c claim) bool { return c.cidr.Overlaps(cidr) })
			if i >= 0 {
				plan.clashes = append(plan.clashes, clash{cidr: cidr, winner: claims[i].owner, lost: p.name})
				continue
			}
			claims = append(claims, claim{cidr: cidr, owner: p.name})
			if p.name == self {
				plan.own = append(plan.own, cidr)
			} else if gw, ok := gatewayFor(cidr, p.addrs); ok {
				plan.routes[cidr] = gw
			}
		}
	}
	return plan
}

func gatewayFor(cidr netip.Prefix, addrs []netip.Addr) (netip.Addr, bool) {
	for _, a := range addrs {
		if a.Is4() == cidr.Addr().Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// diffRoutes tells what to set and what to remove to get from have to want.
func diffRoutes(want, have map[netip.Prefix]netip.Addr) (set map[netip.Prefix]netip.Addr, remove []netip.Prefix) {
	set = map[netip.Prefix]netip.Addr{}
	for cidr, gw := range want {
		if have[cidr] != gw {
			set[cidr] = gw
		}
	}
	for cidr := range have {
		if _, ok := want[cidr]; !ok {
			remove = append(remove, cidr)
		}
	}
	slices.SortFunc(remove, func(a, b netip.Prefix) int { return cmp.Compare(a.String(), b.String()) })
	return set, remove
}

// gatewayOf is the address that a node's pods have as their gateway: the first
// of the network.
func gatewayOf(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }
