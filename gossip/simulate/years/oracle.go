package years

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/mootkube/moot/gossip/crdt"
)

// lawsEvery is how seldom the laws of merge are tried on what is about to be
// merged.
const lawsEvery = 200

// oracle remembers what clients were told and says whether it holds:
//
//   - an acknowledged write is part of the state of its key, and its value is
//     there, or was overwritten by a write that knew it, or is listed as a
//     conflict; unless every disk that had it is gone. One that was overwritten
//     may be forgotten;
//   - an object whose delete is part of the state is never seen again;
//   - all replicas hold the same objects, to the byte;
//   - merge is commutative, associative and idempotent.
type oracle struct {
	w      *world
	number int
	open   map[string][]*write // by key: those that may still be seen, and all since the last check
	dead   map[string]string   // uid → key of objects whose delete was kept
}

func newOracle(w *world) oracle {
	return oracle{w: w, open: map[string][]*write{}, dead: map[string]string{}}
}

func (o *oracle) violation(format string, args ...any) {
	if len(o.w.report.Violations) < 20 {
		o.w.report.Violations = append(o.w.report.Violations,
			fmt.Sprintf("seed %d, hour %.2f: ", o.w.cfg.Seed, float64(o.w.now-(o.w.end-hours(float64(o.w.cfg.Hours))))/float64(hours(1)))+fmt.Sprintf(format, args...))
	}
}

// wrote notes a write that was taken.
func (o *oracle) wrote(wr *write) {
	o.w.report.Writes++
	o.open[wr.key] = append(o.open[wr.key], wr)
	o.w.note(uint64(wr.dot.Origin), wr.dot.Seq)
	if o.w.cfg.Break == BreakSync {
		o.acked(wr, true)
	}
}

// acked notes that a client was told that its write is kept.
func (o *oracle) acked(wr *write, alone bool) {
	if wr.answered {
		return
	}
	wr.answered = true
	o.w.report.Acked++
	if alone {
		o.w.report.AckedAlone++
	}
}

// lose notes that a node's disk becomes another one: what no other disk has is
// lost, and nobody's fault.
func (o *oracle) lose(n *node, next *state) {
	for _, key := range sorted(o.open) {
		for _, wr := range o.open[key] {
			if !wr.excused && n.disk.has(wr) && !next.has(wr) && !o.elsewhere(n, wr) {
				wr.excused = true
				if wr.answered {
					o.w.report.Lost++
				}
			}
		}
	}
}

func (o *oracle) elsewhere(n *node, wr *write) bool {
	return slices.ContainsFunc(o.w.nodes, func(p *node) bool { return p != n && p.disk.has(wr) })
}

// has reports whether a write is part of what a disk holds.
func (s *state) has(wr *write) bool {
	if wr.gone {
		return false
	}
	if it, ok := s.keys[wr.key]; ok && covers(it.rec, wr.dot) {
		return true
	}
	if s.owed != nil && slices.ContainsFunc(s.owed.aside, func(r *crdt.Record) bool {
		return string(r.Key) == wr.key && covers(r, wr.dot)
	}) {
		return true
	}
	return s.claims.Covers(wr.dot)
}

func covers(r *crdt.Record, d crdt.Dot) bool { return r.Covers(d) }

// check compares the replicas, which say that they are one, with each other and
// with what clients were told.
func (o *oracle) check() {
	w := o.w
	w.report.Checks++
	first := w.nodes[0].disk
	for _, n := range w.nodes[1:] {
		o.compare(w.nodes[0], n)
	}
	listed := o.conflicts(first)
	for _, key := range sorted(o.open) {
		o.checkKey(first, key, listed[key])
	}
	for _, key := range sorted(first.keys) {
		if r := first.keys[key].rec; !r.Deleted && o.dead[r.UID] != "" {
			o.violation("%s: object %s was deleted and is back", key, r.UID)
		}
	}
	for _, key := range sorted(first.keys) {
		b, _ := crdt.AppendState(nil, first.keys[key].rec)
		for len(b) >= 8 {
			w.note(uint64(b[0])<<24 | uint64(b[3])<<16 | uint64(b[5])<<8 | uint64(b[7]))
			b = b[8:]
		}
	}
	o.clearConflicts()
}

// compare reports where two replicas differ. A tombstone may be gone on one of
// them.
func (o *oracle) compare(a, b *node) {
	for _, key := range sorted(a.disk.keys) {
		x := a.disk.keys[key].rec
		it, ok := b.disk.keys[key]
		switch {
		case !ok && !x.Deleted:
			o.violation("%s is on %s and not on %s", key, a.name, b.name)
		case ok && x.Deleted && it.rec.Deleted:
		case ok && bytes.Equal(encodeState(x), encodeState(it.rec)):
		case ok && sameObject(x, it.rec):
			o.w.report.Unlike++ // in what else is known of the key
		case ok:
			o.violation("%s differs between %s and %s:\n%s\n%s", key, a.name, b.name, describe(x), describe(it.rec))
		}
	}
	for _, key := range sorted(b.disk.keys) {
		if _, ok := a.disk.keys[key]; !ok && !b.disk.keys[key].rec.Deleted {
			o.violation("%s is on %s and not on %s", key, b.name, a.name)
		}
	}
}

// sameObject reports whether two records hold one object in the same bytes, as
// the store's digest sees it. What they say that the key has been through may
// differ: one replica has forgotten the delete of a name that was used again,
// the other not.
func sameObject(a, b *crdt.Record) bool {
	return !a.Deleted && !b.Deleted && a.UID == b.UID && a.APIVersion == b.APIVersion && bytes.Equal(a.Value, b.Value)
}

func encodeState(r *crdt.Record) []byte {
	b, err := crdt.AppendState(nil, r)
	if err != nil {
		panic(err)
	}
	return b
}

func describe(r *crdt.Record) string {
	return fmt.Sprintf("%s by %s, deleted %v, seen %v, %s", r.Key, r.Dot, r.Deleted, r.Seen(), r.Value)
}

// conflicts returns all that is listed, by key.
func (o *oracle) conflicts(s *state) map[string]string {
	all := map[string]string{}
	for _, key := range sorted(s.keys) {
		r := s.keys[key].rec
		if !strings.HasPrefix(key, conflictPrefix) || r.Deleted {
			continue
		}
		for _, name := range conflictOf(r.Value) {
			all[name] += string(r.Value)
		}
	}
	return all
}

// checkKey checks the writes to one key, and lets go of those that no later
// check needs.
func (o *oracle) checkKey(s *state, key, listed string) {
	var kept, survived, missing []*write
	for _, wr := range o.open[key] {
		switch has := s.has(wr); {
		case has:
			survived = append(survived, wr)
		case wr.answered && !wr.excused:
			missing = append(missing, wr)
		}
	}
	// What came in pieces, whose sender then lost its disk, is claimed by nobody:
	// it is no more to be found once a delete that knew it is forgotten.
	for _, wr := range missing {
		if !o.overwritten(wr, survived) {
			o.violation("%s: acknowledged write %s (%s, %s of %s) is not part of it: %s", key, wr.token, wr.dot, wr.field, wr.uid, o.describe(s, key))
		}
	}
	shown := ""
	if it, ok := s.keys[key]; ok {
		shown = string(it.rec.Value)
	}
	for _, wr := range survived {
		if wr.kind == deletes {
			o.dead[wr.uid] = key
			continue
		}
		if o.overwritten(wr, survived) {
			continue
		}
		switch {
		case strings.Contains(shown, wr.token):
			kept = append(kept, wr)
		case strings.Contains(listed, wr.token):
		case wr.answered:
			o.violation("%s: acknowledged write %s (%s, %s of %s) is lost and not listed: %s", key, wr.token, wr.dot, wr.field, wr.uid, o.describe(s, key))
		}
	}
	o.open[key] = kept
}

// overwritten reports whether a write that knew wr took its place.
func (o *oracle) overwritten(wr *write, others []*write) bool {
	return slices.ContainsFunc(others, func(by *write) bool {
		if by == wr || !by.knew.Covers(wr.dot) {
			return false
		}
		return by.kind != updates || by.uid != wr.uid || by.field == wr.field
	})
}

func (o *oracle) describe(s *state, key string) string {
	var b strings.Builder
	if it, ok := s.keys[key]; ok {
		b.WriteString(describe(it.rec))
	} else {
		b.WriteString("nothing is there")
	}
	all := o.open[key]
	for _, wr := range all[max(0, len(all)-12):] {
		fmt.Fprintf(&b, "\n  %s %s kind %d %s of %s knew %v answered %v has %v", wr.token, wr.dot, wr.kind, wr.field, wr.uid, wr.knew, wr.answered, s.has(wr))
	}
	for _, k := range sorted(s.keys) {
		if r := s.keys[k].rec; strings.HasPrefix(k, conflictPrefix) && bytes.Contains(r.Value, []byte(`"`+key+`"`)) {
			fmt.Fprintf(&b, "\n  listed: %s", r.Value)
		}
	}
	return b.String()
}

// clearConflicts deletes what is listed, as an operator who has read it does.
func (o *oracle) clearConflicts() {
	n := o.w.nodes[0]
	g := n.begin()
	for _, key := range sorted(n.head.keys) {
		if strings.HasPrefix(key, conflictPrefix) && !n.head.keys[key].rec.Deleted {
			n.remove(g, key)
		}
	}
	if len(g.puts) > 0 {
		n.commit(g)
	}
}
