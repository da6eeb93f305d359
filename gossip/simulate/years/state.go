package years

import (
	"maps"
	"math"
	"slices"

	"github.com/mootkube/moot/gossip/crdt"
)

// held is the newest state of a key on a replica.
type held struct {
	rec *crdt.Record
	rev int64
	at  int64 // by the node's clock
}

// state is what a replica holds. Vectors and records in it are immutable.
type state struct {
	origin    crdt.Origin
	seq       uint64 // last issued; after a crash, the ceiling
	ceiling   uint64 // no sequence above it was ever issued
	keys      map[string]held
	claims    crdt.Vector
	past      crdt.Vector // includes the changes that history tells of no more
	forgotten crdt.Vector // includes the deletes that are forgotten
	owed      *owed
	rev       int64
	history   []entry // what a tail can read
	marks     []mark
}

// entry is one change in the history.
type entry struct {
	rev int64
	at  int64
	key string
	rec *crdt.Record
}

// mark says that the claims on peers' changes grew by news at rev.
type mark struct {
	rev  int64
	news []crdt.Dot
}

// owed is what a replica included before a wipe: see gossip/store, wipe.go.
type owed struct {
	covered, claims crdt.Vector
	aside           []*crdt.Record
}

// known returns the part of the claims that a replica which includes has may
// claim again: of an origin all, when what was taken out of its changes is back.
func (o *owed) known(has crdt.Vector) crdt.Vector {
	out := crdt.Vector{}
	for origin, seq := range o.claims {
		if has[origin] >= min(seq, o.covered[origin]) {
			out[origin] = seq
		}
	}
	return out
}

func newState(origin crdt.Origin) *state {
	return &state{origin: origin, ceiling: sequenceReserve, keys: map[string]held{}, claims: crdt.Vector{}, past: crdt.Vector{}, forgotten: crdt.Vector{}}
}

// newestOf returns up to where changes of an origin are held, included or not.
func (s *state) newestOf(o crdt.Origin) uint64 {
	newest := uint64(0)
	note := func(r *crdt.Record) { newest = max(newest, r.Seen()[o]) }
	for _, it := range s.keys {
		note(it.rec)
	}
	if s.owed != nil {
		newest = max(newest, s.owed.claims[o])
		for _, r := range s.owed.aside {
			note(r)
		}
	}
	return newest
}

// clone returns a copy to change.
func (s *state) clone() *state {
	c := *s
	c.keys = maps.Clone(s.keys)
	c.history, c.marks = slices.Clone(s.history), slices.Clone(s.marks)
	return &c
}

// group is what is committed together.
type group struct {
	puts   []entry
	gone   []string    // tombstones that are forgotten
	reset  bool        // everything goes before puts
	unseen crdt.Vector // deletes that a peer has forgotten and that were not seen here
	news   []crdt.Dot
	writes []*write // of clients, answered for when it is on disk
	after  state    // but for keys, history and marks

	conflicts []crdt.Conflict
}

// replay brings s to where the group left the replica.
func (s *state) replay(g *group) {
	if g.reset {
		s.keys, s.history, s.marks = map[string]held{}, nil, nil
	}
	for _, e := range g.puts {
		s.keys[e.key] = held{rec: e.rec, rev: e.rev, at: e.at}
		s.history = append(s.history, e)
	}
	for _, key := range g.gone {
		delete(s.keys, key)
	}
	if len(g.news) > 0 {
		s.marks = append(s.marks, mark{rev: g.after.rev, news: g.news})
	}
	keys, history, marks, past := s.keys, s.history, s.marks, s.past
	*s = g.after
	s.keys, s.history, s.marks = keys, history, marks
	if !g.reset {
		s.past = past // the history is trimmed on its own
	}
	if g.unseen != nil {
		s.trim(math.MaxInt64, 0)
		s.past = s.past.Clone()
		s.past.Join(g.unseen)
	}
}

// trim takes changes from before a time, and those beyond a number, out of the
// history.
func (s *state) trim(before int64, most int) {
	n := 0
	past := s.past.Clone()
	for n < len(s.history) && (s.history[n].at < before || len(s.history)-n > most) {
		e := s.history[n]
		past.Note(e.rec.Dot)
		if e.rec.Joined() {
			past.Join(e.rec.Seen())
		}
		n++
	}
	if n == 0 {
		return
	}
	s.past, s.history = past, append([]entry(nil), s.history[n:]...)
	floor := s.floor()
	s.marks = slices.DeleteFunc(s.marks, func(m mark) bool { return m.rev < floor })
}

// floor is the revision from which on the history is there.
func (s *state) floor() int64 {
	if len(s.history) > 0 {
		return s.history[0].rev
	}
	return s.rev + 1
}

// lowest takes out of v what w does not include.
func lowest(v, w crdt.Vector) {
	for o, seq := range v {
		switch has := w[o]; {
		case has == 0:
			delete(v, o)
		case has < seq:
			v[o] = has
		}
	}
}
