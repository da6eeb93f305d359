package ebpf

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"slices"
)

// maglevSizes are the sizes a table can have: primes, each about four times the
// one before, so that a Service that grows by a few backends keeps its size and
// with it nearly all its slots.
var maglevSizes = [...]int{1021, 4093, 16381, 65521}

// maglevSpare is how many slots a backend should have: with ten, the busiest
// gets at most a tenth more than the idlest.
const maglevSpare = 10

// maglevSize returns how many slots a table of n backends has. Past 6552
// backends it stays at the largest, with fewer slots each.
func maglevSize(n int) int {
	if n <= 1 {
		return n
	}
	for _, size := range maglevSizes {
		if size >= maglevSpare*n {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// maglev returns the table of slots of the backends, each slot the index of a
// backend. It is the consistent hashing of Eisenbud et al., "Maglev: A Fast and
// Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: every
// backend has a permutation of the slots of its own, and they take turns at
// taking the next free one. Equal sets of addresses give equal tables on every
// node, in whatever order they come; a backend that goes leaves nearly all slots
// of the others as they were. Backends beyond the largest table get none.
func maglev(backends []Backend) []int {
	order := make([]int, len(backends))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(backends[a].Addr.Addr().Compare(backends[b].Addr.Addr()),
			cmp.Compare(backends[a].Addr.Port(), backends[b].Addr.Port()))
	})
	order = slices.CompactFunc(order, func(a, b int) bool { return backends[a].Addr == backends[b].Addr })
	size := maglevSize(len(order))
	table := make([]int, size)
	for i := range table {
		table[i] = -1
	}
	if len(order) == 0 {
		return table
	}
	next, skip := make([]int, len(order)), make([]int, len(order))
	for i, b := range order {
		next[i], skip[i] = permutation(backends[b], size)
	}
	for filled := 0; ; {
		for i, b := range order {
			for table[next[i]] >= 0 {
				next[i] = (next[i] + skip[i]) % size
			}
			table[next[i]] = b
			if filled++; filled == size {
				return table
			}
		}
	}
}

// permutation returns where the backend's permutation of the slots starts and by
// how much it steps; as the size is a prime, any step reaches every slot.
func permutation(b Backend, size int) (start, step int) {
	addr := b.Addr.Addr().As16()
	hash := fnv.New128a()
	_, _ = hash.Write(addr[:])
	_, _ = hash.Write(binary.BigEndian.AppendUint16(nil, b.Addr.Port()))
	sum := hash.Sum(nil)
	start = int(mix(binary.BigEndian.Uint64(sum[:8])) % uint64(size))
	if size < 2 {
		return start, 1
	}
	return start, int(mix(binary.BigEndian.Uint64(sum[8:]))%uint64(size-1)) + 1
}

// mix spreads every bit of x over all others: the finalizer of MurmurHash3.
// FNV alone leaves neighbouring addresses with neighbouring sums.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
