package crdt

import (
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
	r := &Record{Key: held.Key, Dot: came.Dot, Stamp: came.Stamp, Unknown: came.Unknown, Deleted: len(s.lives) == 0}
	if !r.Deleted {
		l := s.lives[0]
		r.Value, r.UID, r.APIVersion = l.value, l.uid, l.apiVersion
	}
	r.Meta = s.appendMeta(nil, r, true)
	return r, Merged, conflicts, nil
}

func join(key []byte, a, b *state) (*state, []Conflict) {
	s := &state{seen: a.seen.Clone()}
	s.seen.Join(b.seen)
	var conflicts []Conflict
	for _, l := range a.lives {
		if m := b.life(l.birth.dot); m != nil {
			if m.root.compare(l.root) > 0 {
				l = m
			}
			s.lives = append(s.lives, l)
		} else if !b.seen.Covers(l.birth.dot) {
			s.lives = append(s.lives, l)
		}
	}
	for _, m := range b.lives {
		if a.life(m.birth.dot) == nil && !a.seen.Covers(m.birth.dot) {
			s.lives = append(s.lives, m)
		}
	}
	slices.SortFunc(s.lives, func(l, m *life) int { return l.birth.compare(m.birth) })
	for i := 1; i < len(s.lives); i++ {
		l, kept := s.lives[i], s.lives[0]
		conflicts = append(conflicts, Conflict{Key: string(key), UID: l.uid, Rule: RuleOldest, Lost: l.value, Kept: kept.value,
			LostBy: l.birth.dot, KeptBy: kept.birth.dot, LostAt: l.birth.stamp, KeptAt: kept.birth.stamp})
	}
	return s, conflicts
}

func (s *state) life(birth Dot) *life {
	for _, l := range s.lives {
		if l.birth.dot == birth {
			return l
		}
	}
	return nil
}
