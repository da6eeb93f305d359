package ebpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func backendsOf(n int) []Backend {
	out := make([]Backend, n)
	for i := range out {
		addr := netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)})
		out[i] = Backend{Addr: netip.AddrPortFrom(addr, 8080)}
	}
	return out
}

func TestMaglevIsBalanced(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 50, 102, 103, 400, 1600, 6552, 7000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			table := maglev(backendsOf(n))
			if n > 1 && n <= 6552 && len(table) < maglevSpare*n {
				t.Errorf("%d slots for %d backends", len(table), n)
			}
			count := make([]int, n)
			for _, b := range table {
				count[b]++
			}
			// They take turns: none is more than one slot ahead of another.
			if least, most := slices.Min(count), slices.Max(count); most-least > 1 {
				t.Errorf("slots a backend: from %d to %d", least, most)
			}
		})
	}
}

func TestMaglevDoesNotDependOnTheOrder(t *testing.T) {
	backends := backendsOf(40)
	want := maglev(backends)
	for seed := range uint64(20) {
		mixed := slices.Clone(backends)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		if seed%2 == 0 {
			mixed = append(mixed, mixed[0]) // named twice
		}
		for slot, b := range maglev(mixed) {
			if mixed[b].Addr != backends[want[slot]].Addr {
				t.Fatalf("seed %d: slot %d: %s, want %s", seed, slot, mixed[b].Addr, backends[want[slot]].Addr)
			}
		}
	}
}

func TestMaglevDisturbsLittle(t *testing.T) {
	for _, n := range []int{3, 10, 100, 1000} {
		backends := backendsOf(n)
		before := maglev(backends)
		gone := n / 2
		after := maglev(slices.Delete(slices.Clone(backends), gone, gone+1))
		if len(before) != len(after) {
			t.Fatalf("%d backends: %d slots became %d", n, len(before), len(after))
		}
		own, moved := 0, 0
		for slot, b := range before {
			now := after[slot]
			if now >= gone {
				now++
			}
			switch {
			case b == gone:
				own++
			case now != b:
				moved++
			}
		}
		share := float64(moved) / float64(len(before))
		t.Logf("%d backends: one goes: %d slots were its own, %d of %d others moved (%.2f%%)",
			n, own, moved, len(before)-own, 100*share)
		// The paper's figure 12 has below 2 % at such ratios of slots to backends;
		// plain modulo would move nearly all.
		if share > 0.06 {
			t.Errorf("%d backends: %.1f%% of the other slots moved", n, 100*share)
		}
	}
}

func TestMaglevOfNothing(t *testing.T) {
	if table := maglev(nil); len(table) != 0 {
		t.Errorf("%d slots", len(table))
	}
}
