package net

import (
	"net/netip"
	"slices"
)

// nodeBits is the length of one node's part of a cluster CIDR.
func nodeBits(cluster netip.Prefix) int {
	if cluster.Addr().Is6() {
		return 64
	}
	return 24
}

// maxParts bounds how many parts of a cluster CIDR are looked at: there are no
// more node numbers.
const maxParts = 1 << 16

// partOf is the n-th part of a cluster CIDR, from 0 on.
func partOf(cluster netip.Prefix, n int) netip.Prefix {
	bits := nodeBits(cluster)
	raw := cluster.Masked().Addr().As16()
	last := (bits - 1) / 8 // the byte that the numbers count in
	if cluster.Addr().Is4() {
		last += 12
	}
	for i := last; n > 0 && i >= 0; i-- {
		sum := int(raw[i]) + n&0xff
		raw[i] = byte(sum)
		n = n>>8 + sum>>8
	}
	addr := netip.AddrFrom16(raw)
	if cluster.Addr().Is4() {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}

// parts is how many nodes a cluster CIDR has room for.
func parts(cluster netip.Prefix) int {
	return min(1<<min(nodeBits(cluster)-cluster.Bits(), 16), maxParts)
}

// claim decides which pod networks the node self should have, one of each
// cluster CIDR. What it has it keeps unless an older node has it too. What it
// lacks is the part that its number names or, when a node has that, the next
// one that is free. full lists the cluster CIDRs that have none left.
//
// The outcome depends on its arguments alone, so it is the same on each try.
// Two nodes may still choose the same part at the same moment, or on two sides
// of a cut: the younger will see that here.
func claim(self string, number int, clusters []netip.Prefix, peers []peer) (want, full []netip.Prefix) {
	peers = byAge(peers)
	var mine []netip.Prefix
	var older, others []netip.Prefix // pod networks of nodes
	seen := false
	for _, p := range peers {
		if p.name == self {
			mine, seen = p.podCIDRs, true
			continue
		}
		others = append(others, p.podCIDRs...)
		if !seen {
			older = append(older, p.podCIDRs...)
		}
	}
	for _, cluster := range clusters {
		have := slices.IndexFunc(mine, func(c netip.Prefix) bool {
			return c.Addr().Is6() == cluster.Addr().Is6() && !overlapsAny(c, older)
		})
		if have >= 0 {
			want = append(want, mine[have])
			continue
		}
		if free, ok := freePart(cluster, number, append(slices.Clone(others), mine...)); ok {
			want = append(want, free)
		} else {
			full = append(full, cluster)
		}
	}
	return want, full
}

func freePart(cluster netip.Prefix, number int, taken []netip.Prefix) (netip.Prefix, bool) {
	count := parts(cluster)
	for i := range count {
		if part := partOf(cluster, (max(number, 1)-1+i)%count); !overlapsAny(part, taken) {
			return part, true
		}
	}
	return netip.Prefix{}, false
}

func overlapsAny(p netip.Prefix, in []netip.Prefix) bool {
	return slices.ContainsFunc(in, p.Overlaps)
}
