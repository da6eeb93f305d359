package ebpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
)

// digest is of all that the maps say of a frontend, but for the numbers that it
// was given and a table, which follows from the slots. Slots, draining and sources
// come sorted. Equal digests of one process are taken to be of equal content.
func (b *Balancer) digest(svc service, slots, draining []backend, members bool, sources []sourceKey) uint64 {
	out := make([]byte, 0, 64)
	out = binary.NativeEndian.AppendUint32(out, svc.Affinity)
	out = binary.NativeEndian.AppendUint32(out, svc.Flags)
	out = binary.NativeEndian.AppendUint32(out, uint32(len(slots))) //nolint:gosec // bounded by memory
	if members {
		out = append(out, 1)
	}
	for _, list := range [...][]backend{slots, draining} { // told apart by their flags
		for _, s := range list {
			out = append(append(out, s.Addr[:]...), s.Port[:]...)
			out = binary.NativeEndian.AppendUint16(out, s.Flags)
		}
	}
	for _, s := range sources {
		out = binary.NativeEndian.AppendUint32(out, s.Bits)
		out = append(out, s.Addr[:]...)
	}
	return max(1, maphash.Bytes(b.seed, out)) // 0 is none
}

// sum is of a table's parts, in whatever order they are added.
func (b *Balancer) sum(parts []table) (sum uint64) {
	for i, part := range parts {
		sum += b.sumPart(uint32(i), part) //nolint:gosec // an index
	}
	return sum
}

func (b *Balancer) sumPart(index uint32, part table) uint64 {
	out := binary.NativeEndian.AppendUint32(make([]byte, 0, 4+2*tablePart), index)
	for _, slot := range part {
		out = binary.NativeEndian.AppendUint16(out, slot)
	}
	return maphash.Bytes(b.seed, out)
}

// sourcesOf returns the keys of the ranges, sorted and each once, without an id.
func sourcesOf(ranges []netip.Prefix) []sourceKey {
	var out []sourceKey
	for _, p := range ranges {
		out = append(out, sourceOf(0, p))
	}
	slices.SortFunc(out, func(a, b sourceKey) int {
		return cmp.Or(cmp.Compare(a.Bits, b.Bits), bytes.Compare(a.Addr[:], b.Addr[:]))
	})
	return slices.Compact(out)
}
