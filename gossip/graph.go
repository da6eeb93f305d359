package gossip

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// turnEvery is how often a member of a large cluster tails another one.
const turnEvery = time.Minute

// turn chooses whom to tail. Up to mesh members all tail each other. Beyond
// that each tails degree others: its successor on the ring that all agree on,
// which alone connects the graph, and others drawn at random, one of which is
// drawn anew from time to time. Random graphs of that kind have a diameter of
// about log(n)/log(degree).
type turn struct {
	drawn []string
	next  time.Time
}

// due reports whether it is time to draw another one.
func (t *turn) due(now time.Time) bool { return len(t.drawn) > 0 && !now.Before(t.next) }

func (t *turn) choose(now time.Time, self string, live map[string]bool, mesh, degree int) map[string]bool {
	if len(live)+1 <= mesh {
		t.drawn = nil
		return live
	}
	t.drawn = slices.DeleteFunc(t.drawn, func(name string) bool { return !live[name] })
	if !now.Before(t.next) {
		t.next = now.Add(turnEvery/2 + rand.N(turnEvery))
		if len(t.drawn) >= degree-1 && len(t.drawn) > 0 {
			t.drawn = t.drawn[1:]
		}
	}
	ring := successor(self, live)
	if len(t.drawn) < degree-1 {
		rest := make([]string, 0, len(live))
		for name := range live {
			if name != ring && !slices.Contains(t.drawn, name) {
				rest = append(rest, name)
			}
		}
		slices.Sort(rest)
		rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		t.drawn = append(t.drawn, rest[:min(len(rest), degree-1-len(t.drawn))]...)
	}
	want := map[string]bool{ring: true}
	for _, name := range t.drawn {
		want[name] = true
	}
	return want
}

// ringPlace is a member's place on the ring, the same on every member.
func ringPlace(name string) uint64 {
	const prime, offset = 1099511628211, 14695981039346656037 // FNV-1a
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return h ^ h>>29
}

// successor is the live member after self on the ring.
func successor(self string, live map[string]bool) string {
	place := ringPlace(self)
	best, first := "", ""
	for name := range live {
		p := ringPlace(name)
		if first == "" || cmp.Compare(p, ringPlace(first)) < 0 {
			first = name
		}
		if p > place && (best == "" || p < ringPlace(best)) {
			best = name
		}
	}
	return cmp.Or(best, first)
}
