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

// Tombstone returns the state of a key that is known to hold nothing, although
// the changes in seen were made: what is left when a tombstone was forgotten.
// seen must cover dot.
func Tombstone(key []byte, seen Vector, dot Dot, stamp Stamp) *Record {
	s := &state{seen: seen.Clone(), joined: true, visible: -1}
	s.seen.Note(dot)
	r := &Record{Key: key, Dot: dot, Stamp: stamp}
	s.show(r)
	return r
}
