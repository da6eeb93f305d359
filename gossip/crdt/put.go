package crdt

// Put returns the record of a local write of value over held, which is nil
// when the key was never written. dot must be new; stamp is raised when it is
// not after all that held includes. A life other than the visible one ends.
//
// Revisions, version and lease are the caller's to fill in.
func Put(held *Record, key, value []byte, dot Dot, stamp Stamp, ch Change) *Record {
	s, stamp := follow(held, dot, stamp)
	now := tag{stamp, dot}
	r := &Record{Key: key, Value: value, Dot: dot, Stamp: stamp, UID: ch.UID, APIVersion: ch.APIVersion}
	next := &life{birth: now, root: now, uid: ch.UID, apiVersion: ch.APIVersion, value: value}
	if held != nil && !held.Deleted && held.UID == ch.UID {
		next.birth = s.lives[0].birth
	}
	s.lives = []*life{next}
	r.Meta = s.appendMeta(nil, r, false)
	return r
}

// Delete returns the record of a local delete of key over held, which is nil
// when the key was never written. All lives of the key end.
func Delete(held *Record, key []byte, dot Dot, stamp Stamp) *Record {
	s, stamp := follow(held, dot, stamp)
	s.lives = nil
	r := &Record{Key: key, Deleted: true, Dot: dot, Stamp: stamp}
	r.Meta = s.appendMeta(nil, r, false)
	return r
}

// follow returns the state of held with the change dot noted, and the stamp
// that the change gets.
func follow(held *Record, dot Dot, stamp Stamp) (*state, Stamp) {
	if held == nil {
		return &state{seen: Vector{dot.Origin: dot.Seq}}, max(stamp, 1)
	}
	s, err := decodeState(held)
	if err != nil {
		// The gateways let no such record in. What it shows is still there.
		s = &state{seen: Vector{held.Dot.Origin: held.Dot.Seq}}
		if !held.Deleted {
			own := tag{held.Stamp, held.Dot}
			s.lives = []*life{{birth: own, root: own, uid: held.UID, apiVersion: held.APIVersion, value: held.Value}}
		}
	}
	s.seen.Note(dot)
	return s, max(stamp, held.Stamp+1, s.high()+1)
}
