package crdt

import (
	"bytes"
	"fmt"
	"slices"
)

// Outcome says what a merge made of what was held.
type Outcome int

const (
	Kept     Outcome = iota // held includes all that came: nothing changes
	Replaced                // what came includes all that was held and takes its place
	Merged                  // both had changes of their own: they were joined
)

// String returns the outcome as one word.
func (o Outcome) String() string {
	switch o {
	case Kept:
		return "kept"
	case Replaced:
		return "replaced"
	case Merged:
		return "merged"
	}
	return fmt.Sprintf("outcome %d", int(o))
}

// Merge joins the state of one key that came from another replica into the one
// held, which is nil when the key was never written here. It is commutative,
// associative and idempotent in what [AppendState] writes.
//
// When one side includes the other, Merge returns that record as it is and
// decodes no value. Joined, the record has the dot and the stamp of came, the
// change that it brings in; revisions, version and lease are the caller's to
// fill in. It fails with [ErrMalformed].
func Merge(held, came *Record) (*Record, Outcome, []Conflict, error) {
	if held == nil {
		return came, Replaced, nil, nil
	}
	if !bytes.Equal(held.Key, came.Key) {
		return nil, Kept, nil, fmt.Errorf("merge key %q: %w: the other key is %q", held.Key, ErrMalformed, came.Key)
	}
	if out, ok := dominant(held, came); ok {
		if out == held {
			return held, Kept, nil, nil
		}
		return came, Replaced, nil, nil
	}
	a, err := decodeState(held)
	if err != nil {
		return nil, Kept, nil, fmt.Errorf("merge key %q: held: %w", held.Key, err)
	}
	b, err := decodeState(came)
	if err != nil {
		return nil, Kept, nil, fmt.Errorf("merge key %q: came: %w", held.Key, err)
	}
	switch {
	case a.seen.Includes(b.seen):
		return held, Kept, nil, nil
	case b.seen.Includes(a.seen):
		return came, Replaced, nil, nil
	}
	s, conflicts := join(held.Key, a, b)
	r := &Record{Key: held.Key, Dot: came.Dot, Stamp: came.Stamp, Unknown: came.Unknown}
	s.show(r)
	return r, Merged, conflicts, nil
}

// dominant returns the record that includes the other when the dots tell.
func dominant(held, came *Record) (*Record, bool) {
	switch {
	case !came.Joined() && held.Covers(came.Dot):
		return held, true
	case !held.Joined() && came.Covers(held.Dot):
		return came, true
	}
	return nil, false
}

// join is the join of two states, neither of which includes the other.
func join(key []byte, a, b *state) (*state, []Conflict) {
	s := &state{seen: a.seen.Clone(), joined: true}
	s.seen.Join(b.seen)
	delete(s.seen, grave)
	j := &joiner{key: string(key), a: side{seen: a.seen}, b: side{seen: b.seen}}
	s.ended = slices.Compact(slices.Sorted(slices.Values(slices.Concat(a.ended, b.ended))))
	for _, l := range a.lives {
		switch m := b.find(l); {
		case m != nil:
			s.lives = append(s.lives, j.lives(l, m))
		case !b.ends(l):
			s.lives = append(s.lives, l)
		default:
			j.died(l, b.seen)
		}
	}
	for _, m := range b.lives {
		switch {
		case a.find(m) != nil:
		case !a.ends(m):
			s.lives = append(s.lives, m)
		default:
			j.died(m, a.seen)
		}
	}
	slices.SortFunc(s.lives, func(l, m *life) int { return l.birth.compare(m.birth) })
	s.choose()
	for i, l := range s.lives {
		switch {
		case i == s.visible:
		case a.hides(l) || b.hides(l):
			// It was listed then, but for what has been written to it since where
			// it was still visible.
			if s.visible >= 0 && i > s.visible && (a.hides(l) && b.shownNews(l, a.seen) || b.hides(l) && a.shownNews(l, b.seen)) {
				j.hidden(l, s.lives[s.visible])
			}
		case s.visible >= 0 && i > s.visible:
			j.hidden(l, s.lives[s.visible])
		default:
			j.finished(l, a.find(l), b.find(l))
		}
	}
	return s, j.sorted()
}

// shownNews reports whether l is visible in s and holds writes that are not in
// seen.
func (s *state) shownNews(l *life, seen Vector) bool {
	m := s.find(l)
	return m != nil && !s.hides(l) && !newest(m.claims, seen).isZero()
}

// hides reports whether l is in s and not visible.
func (s *state) hides(l *life) bool {
	for i, m := range s.lives {
		if m.same(l) {
			return i != s.visible
		}
	}
	return false
}

// canonical returns l with its value in canonical form.
func (l *life) canonical() *life {
	n := parseObject(l.value)
	if n == nil {
		return l
	}
	out := *l
	origin := l.birth.dot.Origin
	out.steps = l.steps.of(origin, n).set(origin, n)
	settle(n)
	out.claims.owned(n)
	out.value = n.append(make([]byte, 0, len(l.value)))
	return &out
}

// lives joins one life as the two sides hold it. Where one of them knew all of
// the other, it stays as it was written, to the byte: whatever else the key has
// been through, and has been forgotten on some replica, plays no part in it.
func (j *joiner) lives(l, m *life) *life {
	switch {
	case l.includes(m):
		return l
	case m.includes(l):
		return m
	}
	out := &life{birth: l.birth, shared: l.shared, uid: l.uid, merged: true, seen: l.seen.Clone()}
	out.seen.Join(m.seen)
	if m.birth.compare(l.birth) < 0 {
		out.birth = m.birth
	}
	j.uid = l.uid
	j.a.value, j.b.value = parseObject(l.value), parseObject(m.value)
	if j.a.value == nil || j.b.value == nil {
		// One of them is no object: such a write takes the place of the other.
		win := l
		if c := l.claims.whole.compare(m.claims.whole); c < 0 || c == 0 && bytes.Compare(l.value, m.value) < 0 {
			win = m
		}
		if lose := map[bool]*life{true: m, false: l}[win == l]; !bytes.Equal(win.value, lose.value) {
			j.opaque(lose, win)
		}
		out.claims, out.value, out.apiVersion = win.claims, win.value, win.apiVersion
		return out.canonical()
	}
	raised := joinSteps(l.steps.of(l.birth.dot.Origin, j.a.value), m.steps.of(m.birth.dot.Origin, j.b.value), l.seen, m.seen)
	for _, n := range []*node{j.a.value, j.b.value} {
		if meta := n.get("metadata"); meta != nil && meta.kind == object {
			meta.set("generation", nil)
		}
	}
	var entries []string
	if l.claims.whole == m.claims.whole {
		entries = managers(j.a.value.get("apiVersion").text(), []*node{j.a.value, j.b.value}, l.claims, m.claims)
		l.claims.spell(entries)
		m.claims.spell(entries)
	}
	c, v := j.places(l.claims, j.a.value, m.claims, j.b.value)
	c.unspell(entries)
	if v == nil {
		v = &node{kind: object}
	}
	out.steps = raised.set(out.birth.dot.Origin, v)
	settle(v)
	c.owned(v)
	out.claims, out.apiVersion = c, v.get("apiVersion").text()
	out.value = v.append(make([]byte, 0, len(l.value)+len(m.value)/4))
	return out
}

// finished reports whether the object is at the end of its deletion: nothing
// holds it back any more, so that whoever had written this value would have
// deleted it instead.
func (l *life) finished() bool {
	if !bytes.Contains(l.value, []byte(`"deletionTimestamp"`)) {
		return false
	}
	n := parseObject(l.value)
	meta := n.get("metadata")
	if meta.get("deletionTimestamp").text() == "" || meta.get("deletionGracePeriodSeconds").integer() > 0 {
		return false
	}
	if f := meta.get("finalizers"); f != nil && len(f.items) > 0 {
		return false
	}
	if n.get("kind").text() == "Namespace" {
		if f := n.at("spec", "finalizers"); f != nil && len(f.items) > 0 {
			return false
		}
	}
	return true
}
