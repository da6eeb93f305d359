package crdt

// Born returns the stamp of the create with which the visible life of the key
// began. For a delete it is the stamp of the delete.
func (r *Record) Born() Stamp {
	if len(r.Meta) == 0 || r.Deleted {
		return r.Stamp
	}
	s, err := decodeState(r)
	if err != nil || s.visible < 0 {
		return r.Stamp
	}
	return s.lives[s.visible].birth.stamp
}

// Seen returns the changes of the key that its state includes.
func (r *Record) Seen() Vector {
	in := reader{b: r.Meta}
	if len(r.Meta) > 0 && in.header()&metaSeen != 0 {
		if v := in.vector(); in.err == nil {
			return v
		}
	}
	return Vector{r.Dot.Origin: r.Dot.Seq}
}

// Latest returns the highest stamp that the state holds.
func (r *Record) Latest() Stamp {
	if len(r.Meta) == 0 {
		return r.Stamp
	}
	s, err := decodeState(r)
	if err != nil {
		return r.Stamp
	}
	return max(r.Stamp, s.high())
}

// grave stands in the vector of a forgotten tombstone for the delete that
// nobody knows any more: no record includes it, so none takes the place of the
// tombstone unmerged.
const grave Origin = 1<<64 - 1

// Recall returns held, nil for nothing, with what its replica has forgotten of
// the key's past as far as came can tell: the changes in seen, all of which the
// replica includes. A life in came that was among them, and that held lacks, was
// deleted. The outcome is to be merged with came, not to be kept: what came
// includes beyond seen does not bring back what was deleted. For nothing held,
// seen must cover some change.
func Recall(held, came *Record, seen Vector) *Record {
	s := &state{visible: -1}
	out := Record{Key: came.Key, Stamp: 1}
	if held != nil {
		out = *held
		if d, err := decodeState(held); err == nil {
			s = d
		}
	}
	s.seen, s.joined = s.seen.Clone(), true
	s.seen.Join(seen)
	for o, seq := range s.seen {
		if held == nil && (out.Dot.IsZero() || o < out.Dot.Origin) {
			out.Dot = Dot{o, seq}
		}
	}
	s.seen.Note(Dot{grave, 1})
	if c, err := decodeState(came); err == nil {
		for _, l := range c.lives {
			known := s.seen.Covers(l.birth.dot)
			l.claims.each(func(t *tag) { known = known || !t.constant() && s.seen.Covers(t.dot) })
			if known && s.find(l) == nil {
				s.end([]*life{l}, nil)
			}
		}
	}
	s.show(&out)
	return &out
}

// Births returns the creates of the lives that the state holds, the hidden ones
// too.
func (r *Record) Births() []Dot {
	s, err := decodeState(r)
	if err != nil {
		return nil
	}
	births := make([]Dot, len(s.lives))
	for i, l := range s.lives {
		births[i] = l.birth.dot
	}
	return births
}
