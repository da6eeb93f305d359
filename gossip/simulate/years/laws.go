package years

import (
	"bytes"
	"encoding/json"

	"github.com/mootkube/moot/gossip/crdt"
)

// sampleLaws tries the laws of merge on what three replicas hold of a key. Where
// one has forgotten a delete that another still shows, their states are no
// elements of one lattice; the store keeps such from being merged as they are.
func (w *world) sampleLaws(came *crdt.Record) {
	if w.rng.IntN(lawsEvery) != 0 || w.cfg.Break != BreakNothing {
		return
	}
	var of []*crdt.Record
	var by []*state
	for range 3 {
		d := w.nodes[w.rng.IntN(len(w.nodes))].disk
		if it, ok := d.keys[string(came.Key)]; ok {
			of, by = append(of, it.rec), append(by, d)
		}
	}
	if len(of) < 3 || !remembered(of, by) {
		return
	}
	w.report.Laws++
	a, b, c := of[0], of[1], of[2]
	join := func(x, y *crdt.Record) *crdt.Record {
		z, _, _, err := crdt.Merge(x, y)
		if err != nil {
			panic(err)
		}
		return z
	}
	same := func(law string, x, y *crdt.Record) {
		if !bytes.Equal(encodeState(x), encodeState(y)) {
			w.oracle.violation("merge is not %s:\n%s\n%s\n%s", law, describe(a), describe(b), describe(c))
		}
	}
	same("commutative", join(a, b), join(b, a))
	same("associative", join(join(a, b), c), join(a, join(b, c)))
	same("idempotent", join(a, a), a)
	same("idempotent", join(join(a, b), b), join(a, b))
}

// remembered reports whether each record shows all of the others that its
// replica includes.
func remembered(of []*crdt.Record, by []*state) bool {
	for i, d := range by {
		seen := of[i].Seen()
		for _, r := range of {
			for o, seq := range r.Seen() {
				if d.claims[o] >= seq && seen[o] < seq {
					return false
				}
			}
		}
	}
	return true
}

// conflictOf returns the key that a listed conflict is about.
func conflictOf(value []byte) []string {
	var c crdt.Conflict
	if json.Unmarshal(value, &c) != nil {
		return nil
	}
	return []string{c.Key}
}

// standings says what each node has, for a cluster that does not become one.
func (w *world) standings() string {
	var b bytes.Buffer
	for _, n := range w.nodes {
		b.WriteString("\n  " + n.standingText())
	}
	return b.String()
}
