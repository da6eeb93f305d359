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
	s, err := decodeState(r)
	if err != nil {
		return Vector{r.Dot.Origin: r.Dot.Seq}
	}
	return s.seen
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
// nobody knows any more.
const grave Origin = 1<<64 - 1

// Tombstone returns the state of the key of r when it is known to hold nothing,
// although the changes in seen were made: what is left when a tombstone was
// forgotten, as far as r can tell. It is to be merged with r, not to be kept:
// what r includes beyond seen does not bring back what was deleted. seen must
// cover dot.
func Tombstone(r *Record, seen Vector, dot Dot, stamp Stamp) *Record {
	s := &state{seen: seen.Clone(), joined: true, visible: -1}
	s.seen.Note(dot)
	s.seen.Note(Dot{grave, 1})
	if came, err := decodeState(r); err == nil {
		s.ended = came.ended
		for _, l := range came.lives {
			known := s.seen.Covers(l.birth.dot)
			l.claims.each(func(t *tag) { known = known || !t.constant() && s.seen.Covers(t.dot) })
			if known {
				s.end([]*life{l}, nil)
			}
		}
	}
	out := &Record{Key: r.Key, Dot: dot, Stamp: stamp}
	s.show(out)
	return out
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
