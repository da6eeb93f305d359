package net

import (
	"cmp"
	"crypto/sha256"
	stdnet "net"
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

// byAge orders peers from the oldest to the youngest, the same on every node.
func byAge(peers []peer) []peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b peer) int {
		return cmp.Or(a.born.Compare(b.born), cmp.Compare(a.name, b.name))
	})
}

// way is how packets get to another node.
type way int

const (
	wayDirect way = iota // its address is on a link of ours
	wayRouted            // there is a router in between, which knows no pods
)

// hop is where the packets for a pod network go next.
type hop struct {
	via     netip.Addr
	overlay bool       // through the overlay's device
	src     netip.Addr // what the node itself sends from; the kernel chooses if not set
}

// tunnel is another node's end of the overlay.
type tunnel struct {
	mac  [6]byte
	hops []netip.Addr // next hops that are it
}

// routePlan is what the kernel should hold.
type routePlan struct {
	own     []netip.Prefix        // this node's pod networks
	routes  map[netip.Prefix]hop  // other nodes' pod networks
	tunnels map[netip.Addr]tunnel // by the node's address outside the overlay
	members []netip.Addr          // who may send through the overlay
	clashes []clash
}

// clash is a pod network that two nodes claim. The older node has it.
type clash struct {
	cidr         netip.Prefix
	winner, lost string
}

// terrain is what a plan is made for, beside the nodes.
type terrain struct {
	self      string
	mode      Mode
	underlay6 bool                 // the overlay's own packets are IPv6
	ways      func(netip.Addr) way // to another node's address
}

// holding is a pod network with the node that has it.
type holding struct {
	cidr  netip.Prefix
	owner peer
}

// holdingsOf settles whose each pod network is: the older node's. The outcome does
// not depend on the order of peers.
func holdingsOf(peers []peer) (held []holding, clashes []clash) {
	for _, p := range byAge(peers) {
		for _, cidr := range p.podCIDRs {
			i := slices.IndexFunc(held, func(h holding) bool { return h.cidr.Overlaps(cidr) })
			if i >= 0 {
				clashes = append(clashes, clash{cidr: cidr, winner: held[i].owner.name, lost: p.name})
				continue
			}
			held = append(held, holding{cidr: cidr, owner: p})
		}
	}
	return held, clashes
}

// networksOf is where each node and its pods have their addresses.
func networksOf(peers []peer, mode Mode) map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, p := range peers {
		for _, a := range p.addrs {
			out[p.name] = append(out[p.name], netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if mode == ModeNone {
		return out // another plugin may take pods' addresses from elsewhere
	}
	held, _ := holdingsOf(peers)
	for _, h := range held {
		out[h.owner.name] = append(out[h.owner.name], h.cidr)
	}
	return out
}

// plan decides from all nodes of the cluster what this node routes where. The
// outcome does not depend on the order of peers.
func (t terrain) plan(peers []peer) routePlan {
	plan := routePlan{routes: map[netip.Prefix]hop{}, tunnels: map[netip.Addr]tunnel{}}
	for _, p := range peers {
		if p.name != t.self {
			plan.members = append(plan.members, p.addrs...)
		}
	}
	held, clashes := holdingsOf(peers)
	plan.clashes = clashes
	for _, h := range held {
		if h.owner.name == t.self {
			plan.own = append(plan.own, h.cidr)
		}
	}
	for _, h := range held {
		if h.owner.name != t.self {
			t.route(&plan, h.owner, h.cidr)
		}
	}
	slices.SortFunc(plan.members, netip.Addr.Compare)
	plan.members = slices.Compact(plan.members)
	return plan
}

// route adds the way to one pod network of another node.
func (t terrain) route(plan *routePlan, p peer, cidr netip.Prefix) {
	if gw, ok := ofFamily(p.addrs, cidr.Addr().Is6()); ok && t.mode == ModeAuto && t.ways(gw) == wayDirect {
		plan.routes[cidr] = hop{via: gw}
		return
	}
	end, ok := ofFamily(p.addrs, t.underlay6)
	if !ok {
		return // it has not said its address yet
	}
	mac := overlayMAC(end)
	next := hop{via: gatewayOf(cidr), overlay: true}
	if cidr.Addr().Is6() {
		next.via = linkLocal(mac)
	}
	for _, own := range plan.own {
		if own.Addr().Is6() == cidr.Addr().Is6() {
			next.src = gatewayOf(own)
		}
	}
	plan.routes[cidr] = next
	far := plan.tunnels[end]
	far.mac = mac
	far.hops = append(far.hops, next.via)
	plan.tunnels[end] = far
}

func ofFamily(addrs []netip.Addr, v6 bool) (netip.Addr, bool) {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// overlayMAC is the hardware address of the overlay's device on the node with
// an address, so that nobody has to be told: locally administered, and the
// same wherever it is worked out.
func overlayMAC(node netip.Addr) [6]byte {
	sum := sha256.Sum256(append([]byte("moot-vxlan "), node.AsSlice()...))
	mac := [6]byte(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// linkLocal is the IPv6 address that belongs to a hardware address.
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// diffRoutes tells what to set and what to remove to get from have to want. A
// route that changes between link and overlay is both: IPv6 takes a new one
// only once the old one is gone.
func diffRoutes(want, have map[netip.Prefix]hop) (set map[netip.Prefix]hop, remove []netip.Prefix) {
	set = map[netip.Prefix]hop{}
	for cidr, next := range want {
		if have[cidr] != next {
			set[cidr] = next
		}
	}
	for cidr, old := range have {
		if next, ok := want[cidr]; !ok || next.overlay != old.overlay {
			remove = append(remove, cidr)
		}
	}
	slices.SortFunc(remove, func(a, b netip.Prefix) int { return cmp.Compare(a.String(), b.String()) })
	return set, remove
}

// gatewayOf is the address that a node's pods have as their gateway: the first
// of the network.
func gatewayOf(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// overhead is what the overlay adds to a packet: the inner Ethernet header, and
// the VXLAN, UDP and IP headers.
func overhead(underlay6 bool) int {
	if underlay6 {
		return 14 + 8 + 8 + 40
	}
	return 14 + 8 + 8 + 20
}

func hardware(mac [6]byte) stdnet.HardwareAddr { return stdnet.HardwareAddr(mac[:]) }
