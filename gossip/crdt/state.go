package crdt

import (
	"cmp"
	"encoding/binary"
)

// tag is a dot with its stamp: what orders writes. The zero tag is before all.
type tag struct {
	stamp Stamp
	dot   Dot
}

func (t tag) compare(u tag) int {
	return cmp.Or(cmp.Compare(t.stamp, u.stamp), cmp.Compare(t.dot.Origin, u.dot.Origin), cmp.Compare(t.dot.Seq, u.dot.Seq))
}

func (t tag) isZero() bool { return t == tag{} }

// life is one life of a key: from a create to the delete. Its identity is its
// birth, or its UID when it is a shared one.
type life struct {
	birth      tag // of several, the oldest
	shared     bool
	claims     *claims // of the places of value
	steps      steps   // of metadata.generation
	seen       Vector  // the changes of the key that whoever wrote it last knew; of all those, when merged
	merged     bool    // the last writes of it are several, concurrent ones: the value is what they join to
	uid        string
	apiVersion string
	value      []byte
}

// born returns the life that a create of value begins.
func born(t tag, uid, apiVersion string, value []byte) *life {
	return &life{birth: t, claims: &claims{whole: t}, uid: uid, apiVersion: apiVersion, value: value}
}

// includes reports whether l holds all that m does of the same life.
func (l *life) includes(m *life) bool { return l.seen.Includes(m.seen) }

// fresh reports whether l is as its create made it.
func (l *life) fresh() bool {
	return !l.shared && len(l.claims.kids) == 0 && l.claims.marker.isZero() && l.claims.whole == l.birth && l.steps == nil
}

// state is what a key holds, as an element of a join-semilattice: it is a
// function of the changes in seen. lives are in the order of their births.
type state struct {
	seen    Vector
	joined  bool // more than one change in seen has none after it
	lives   []*life
	visible int      // which of lives is, -1 when none is
	ended   []string // shared UIDs whose lives are over, in order
}

// choose makes the oldest life visible, but for one that is at its end because
// of what several wrote.
func (s *state) choose() {
	s.visible = -1
	for i, l := range s.lives {
		if !l.merged || !l.finished() {
			s.visible = i
			return
		}
	}
}

// show sets what r says of the key itself.
func (s *state) show(r *Record) {
	r.Deleted = s.visible < 0
	if !r.Deleted {
		l := s.lives[s.visible]
		r.Value, r.UID, r.APIVersion = l.value, l.uid, l.apiVersion
	}
	r.Meta = s.appendMeta(nil, r)
}

// Encoding of a state into [Record.Meta]. What the record itself says is not
// repeated: the whole of a key that was put once, or deleted after one origin
// alone wrote it, is no bytes at all.
const metaVersion = 1

const (
	metaSeen   = 1 << iota // a vector follows; else the record's dot is all that was seen
	metaLives              // lives follow; else there is the record's own, born with it, or none
	metaJoined             // the record's dot does not cover all that was seen
	metaEnded              // shared UIDs follow whose lives are over
)

const (
	lifeShown  = 1 << iota // its value is the record's
	lifeClaims             // claims follow; else its create wrote it all
	lifeSteps              // steps of its generation follow
	lifeShared             // its UID is its identity
	lifeSeen               // what its writers knew follows; else it is all that was seen, and merged if that is joined
	lifeMerged             // it is merged, with lifeSeen
)

// appendMeta appends the encoding of s, but for what r says, to b.
func (s *state) appendMeta(b []byte, r *Record) []byte {
	var flags byte
	own := Vector{r.Dot.Origin: r.Dot.Seq}
	if s.joined || !own.Includes(s.seen) {
		flags |= metaSeen
	}
	if s.joined {
		flags |= metaJoined
	}
	plain := len(s.lives) == 0 && r.Deleted ||
		len(s.lives) == 1 && !r.Deleted && s.lives[0].fresh() && s.lives[0].birth == tag{r.Stamp, r.Dot} &&
			(!s.joined || own.Includes(s.lives[0].seen))
	if !plain {
		flags |= metaLives
	}
	if len(s.ended) > 0 {
		flags |= metaEnded
	}
	if flags == 0 {
		return b
	}
	b = append(b, metaVersion, flags)
	if flags&metaSeen != 0 {
		b = s.seen.Append(b)
	}
	if flags&metaEnded != 0 {
		b = s.appendEnded(b)
	}
	if flags&metaLives != 0 {
		b = s.appendLives(b)
	}
	return b
}

func (s *state) appendEnded(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.ended)))
	for _, uid := range s.ended {
		b = appendBlob(b, uid)
	}
	return b
}

func (r *reader) ended() []string {
	var all []string
	for range r.count(1) {
		uid := string(r.bytes())
		if r.err != nil {
			return nil
		}
		if len(all) > 0 && uid <= all[len(all)-1] {
			r.fail("ended lives out of order")
			return nil
		}
		all = append(all, uid)
	}
	return all
}

func (s *state) appendLives(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.lives)))
	for i, l := range s.lives {
		var flags byte
		if i == s.visible {
			flags |= lifeShown
		}
		if !l.fresh() {
			flags |= lifeClaims
		}
		if l.steps != nil {
			flags |= lifeSteps
		}
		if l.shared {
			flags |= lifeShared
		}
		if !l.seen.Includes(s.seen) {
			flags |= lifeSeen
			if l.merged {
				flags |= lifeMerged
			}
		}
		b = append(b, flags)
		b = appendTag(b, l.birth)
		if flags&lifeSeen != 0 {
			b = l.seen.Append(b)
		}
		if flags&lifeClaims != 0 {
			b = appendClaims(b, l.claims)
		}
		if flags&lifeSteps != 0 {
			b = l.steps.append(b)
		}
		if flags&lifeShown == 0 {
			b = appendBlob(b, l.uid)
			b = appendBlob(b, l.apiVersion)
			b = appendBlob(b, l.value)
		}
	}
	return b
}

func appendTag(b []byte, t tag) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(t.dot.Origin))
	b = binary.AppendUvarint(b, t.dot.Seq)
	return binary.BigEndian.AppendUint64(b, uint64(t.stamp))
}

func appendBlob[T string | []byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func (r *reader) tag() tag {
	t := r.anyTag()
	if r.err == nil && t.stamp == 0 {
		r.fail("empty stamp")
	}
	return t
}

// anyTag reads a tag that may be a constant one.
func (r *reader) anyTag() tag {
	t := tag{dot: Dot{Origin: Origin(r.uint64()), Seq: r.uvarint()}, stamp: Stamp(r.uint64())}
	if r.err == nil && (t.dot.Origin == 0 || t.dot.Seq == 0) {
		r.fail("empty dot")
	}
	return t
}

// header reads the front of meta.
func (r *reader) header() (flags byte) {
	if r.byte() != metaVersion && r.err == nil {
		r.fail("unknown version of the state")
	}
	flags = r.byte()
	if r.err == nil && (flags == 0 || flags&^(metaSeen|metaLives|metaJoined|metaEnded) != 0) {
		r.fail("unknown flags")
	}
	return flags
}

// decodeState returns the state that r carries.
func decodeState(r *Record) (*state, error) {
	s := &state{visible: -1}
	var flags byte
	in := reader{b: r.Meta}
	if len(r.Meta) > 0 {
		flags = in.header()
	}
	if flags&metaSeen != 0 {
		s.seen = in.vector()
	} else {
		s.seen = Vector{r.Dot.Origin: r.Dot.Seq}
	}
	s.joined = flags&metaJoined != 0
	if flags&metaEnded != 0 {
		s.ended = in.ended()
	}
	switch {
	case flags&metaLives != 0:
		in.lives(s, r)
	case !r.Deleted:
		l := born(tag{r.Stamp, r.Dot}, r.UID, r.APIVersion, r.Value)
		if l.seen = s.seen; s.joined {
			l.seen = Vector{r.Dot.Origin: r.Dot.Seq}
		}
		s.lives, s.visible = []*life{l}, 0
	}
	if in.err == nil && len(in.b) > 0 {
		in.fail("bytes after the end")
	}
	if in.err == nil && !s.seen.Covers(r.Dot) {
		in.fail("the state lacks its own change")
	}
	if in.err != nil {
		return nil, in.err
	}
	return s, nil
}

func (r *reader) lives(s *state, rec *Record) {
	n := r.count(18)
	for i := range n {
		l := r.life(s)
		if r.err != nil {
			return
		}
		if l.value == nil {
			if s.visible >= 0 || rec.Deleted {
				r.fail("the wrong life is shown")
				return
			}
			s.visible = i
			l.uid, l.apiVersion, l.value = rec.UID, rec.APIVersion, rec.Value
		}
		if i > 0 && s.lives[i-1].birth.compare(l.birth) >= 0 {
			r.fail("lives out of order")
			return
		}
		s.lives = append(s.lives, l)
	}
	if s.visible < 0 && !rec.Deleted {
		r.fail("no life is shown")
	}
}

// life reads one life. The value of the one that is shown is nil.
func (r *reader) life(s *state) *life {
	flags := r.byte()
	if flags >= lifeMerged<<1 || flags&lifeMerged != 0 && flags&lifeSeen == 0 {
		r.fail("unknown flags of a life")
	}
	l := &life{birth: r.tag(), shared: flags&lifeShared != 0, seen: s.seen, merged: s.joined}
	l.claims = &claims{whole: l.birth}
	if flags&lifeSeen != 0 {
		l.seen, l.merged = r.vector(), flags&lifeMerged != 0
		if r.err == nil && (!s.joined || l.seen.Includes(s.seen) || !s.seen.Includes(l.seen)) {
			r.fail("a life saw something else")
		}
	}
	if r.err == nil && !l.seen.Covers(l.birth.dot) {
		r.fail("a life was not seen")
	}
	if flags&lifeClaims != 0 {
		l.claims = r.claims(l.seen)
	}
	if flags&lifeSteps != 0 {
		l.steps = r.steps()
	}
	if flags&lifeShown == 0 {
		l.uid, l.apiVersion = string(r.bytes()), string(r.bytes())
		l.value = append([]byte{}, r.bytes()...)
	}
	return l
}

// high is the highest stamp in the state.
func (s *state) high() Stamp {
	var h Stamp
	for _, l := range s.lives {
		h = max(h, l.birth.stamp)
		l.claims.each(func(t *tag) { h = max(h, t.stamp) })
	}
	return h
}

// find returns what s has of the life l, nil when it has none of it.
func (s *state) find(l *life) *life {
	for _, m := range s.lives {
		if m.same(l) {
			return m
		}
	}
	return nil
}
