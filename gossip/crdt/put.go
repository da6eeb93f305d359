package crdt

import "slices"

// Put returns the record of a local write of value over held, which is nil
// when the key was never written; ch is what [DescribeChange] found for the
// two. dot must be new; stamp is raised when it is not after all that held
// includes. Lives that are not visible end.
//
// Revisions, version and lease are the caller's to fill in.
func Put(held *Record, key, value []byte, dot Dot, stamp Stamp, ch Change) *Record {
	s, stamp := follow(held, dot, stamp)
	if ch.isZero() {
		var old []byte
		if held != nil {
			old = held.Value
		}
		ch = DescribeChange(old, value, nil)
		ch.Paths = nil
	}
	now := tag{stamp, dot}
	var next *life
	switch {
	case s.visible >= 0 && s.lives[s.visible].uid == ch.UID:
		next = s.lives[s.visible].write(born(now, ch.UID, ch.APIVersion, value), ch)
		s.end(s.lives, s.lives[s.visible])
	case isShared(ch.UID) && !slices.Contains(s.ended, ch.UID) && !s.holds(ch.UID):
		next = bornShared(now, ch, value)
		s.end(s.lives, nil)
	default:
		next = born(now, ch.UID, ch.APIVersion, value)
		s.end(s.lives, nil)
	}
	next.seen = s.seen
	s.lives, s.visible, s.joined = []*life{next}, 0, false
	r := &Record{Key: key, Dot: dot, Stamp: stamp}
	s.show(r)
	return r
}

// holds reports whether one of the lives has the UID.
func (s *state) holds(uid string) bool {
	return slices.ContainsFunc(s.lives, func(l *life) bool { return l.uid == uid })
}

// write returns l after the write that, had it been a create, would have begun
// next.
func (l *life) write(next *life, ch Change) *life {
	now := next.birth
	next.birth, next.shared = l.birth, l.shared
	next.steps = l.steps.raise(l.birth.dot.Origin, now.dot.Origin, ch.Step, ch.Generation)
	if len(ch.Paths) == 0 {
		return next
	}
	p, err := decodePaths(ch.Paths)
	if err != nil || l.apiVersion != ch.APIVersion {
		return next
	}
	next.claims = l.claims
	next.claims.add(p, now)
	next.claims.bound(now)
	return next
}

// Delete returns the record of a local delete of key over held, which is nil
// when the key was never written. All lives of the key end.
func Delete(held *Record, key []byte, dot Dot, stamp Stamp) *Record {
	s, stamp := follow(held, dot, stamp)
	s.end(s.lives, nil)
	s.lives, s.visible, s.joined = nil, -1, false
	r := &Record{Key: key, Dot: dot, Stamp: stamp}
	s.show(r)
	return r
}

// follow returns the state of held with the change dot noted, and the stamp
// that the change gets.
func follow(held *Record, dot Dot, stamp Stamp) (*state, Stamp) {
	if held == nil {
		return &state{seen: Vector{dot.Origin: dot.Seq}, visible: -1}, max(stamp, 1)
	}
	s, err := decodeState(held)
	if err != nil {
		// The gateways let no such record in. What it shows is still there.
		s = &state{seen: Vector{held.Dot.Origin: held.Dot.Seq}, visible: -1}
		if !held.Deleted {
			s.visible, s.lives = 0, []*life{born(tag{held.Stamp, held.Dot}, held.UID, held.APIVersion, held.Value)}
			s.lives[0].seen = s.seen
		}
	}
	s.seen.Note(dot)
	return s, max(stamp, held.Stamp+1, s.high()+1)
}
