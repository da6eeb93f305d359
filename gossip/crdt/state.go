package crdt

import (
	"cmp"
	"encoding/binary"
	"slices"
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
// birth.
type life struct {
	birth      tag
	root       tag // the last write of the whole value
	uid        string
	apiVersion string
	value      []byte
}

// state is what a key holds, as an element of a join-semilattice: it is a
// function of the changes in seen. lives are in the order of their births; the
// first is the one that is visible.
type state struct {
	seen  Vector
	lives []*life
}

// Encoding of a state into [Record.Meta]. What the record itself says is not
// repeated: the whole of a key that was put once, or deleted after one origin
// alone wrote it, is no bytes at all.
const metaVersion = 1

const (
	metaSeen   = 1 << iota // a vector follows; else the record's dot is all that was seen
	metaLives              // lives follow; else there is the record's own, born with it, or none
	metaJoined             // the record's dot does not cover all that was seen
)

const (
	lifeShown = 1 << iota // its value is the record's
	lifeRoot              // a tag of the last whole write follows
)

// appendMeta appends the encoding of s as the rest of r to b. r shows the
// first life.
func (s *state) appendMeta(b []byte, r *Record, joined bool) []byte {
	var flags byte
	own := Vector{r.Dot.Origin: r.Dot.Seq}
	if joined || !own.Includes(s.seen) {
		flags |= metaSeen
	}
	if joined {
		flags |= metaJoined
	}
	if len(s.lives) > 1 || len(s.lives) == 1 && s.lives[0].birth.dot != r.Dot {
		flags |= metaLives
	}
	if flags == 0 {
		return b
	}
	b = append(b, metaVersion, flags)
	if flags&metaSeen != 0 {
		b = s.seen.Append(b)
	}
	if flags&metaLives != 0 {
		b = s.appendLives(b, r)
	}
	return b
}

func (s *state) appendLives(b []byte, r *Record) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.lives)))
	for i, l := range s.lives {
		var flags byte
		if i == 0 && !r.Deleted {
			flags |= lifeShown
		}
		if l.root != l.birth {
			flags |= lifeRoot
		}
		b = append(b, flags)
		b = appendTag(b, l.birth)
		if flags&lifeRoot != 0 {
			b = appendTag(b, l.root)
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
	t := tag{dot: Dot{Origin: Origin(r.uint64()), Seq: r.uvarint()}, stamp: Stamp(r.uint64())}
	if r.err == nil && (t.dot.Origin == 0 || t.dot.Seq == 0 || t.stamp == 0) {
		r.fail("empty dot or stamp")
	}
	return t
}

// header reads the front of meta.
func (r *reader) header() (flags byte) {
	if r.byte() != metaVersion && r.err == nil {
		r.fail("unknown version of the state")
	}
	flags = r.byte()
	if r.err == nil && (flags == 0 || flags&^(metaSeen|metaLives|metaJoined) != 0) {
		r.fail("unknown flags")
	}
	return flags
}

// decodeState returns the state that r carries.
func decodeState(r *Record) (*state, error) {
	s := &state{}
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
	switch {
	case flags&metaLives != 0:
		in.lives(s, r)
	case !r.Deleted:
		own := tag{r.Stamp, r.Dot}
		s.lives = []*life{{birth: own, root: own, uid: r.UID, apiVersion: r.APIVersion, value: r.Value}}
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
		l := &life{}
		flags := r.byte()
		l.birth = r.tag()
		l.root = l.birth
		if flags&lifeRoot != 0 {
			l.root = r.tag()
		}
		if flags&lifeShown != 0 {
			l.uid, l.apiVersion, l.value = rec.UID, rec.APIVersion, rec.Value
		} else {
			l.uid, l.apiVersion, l.value = string(r.bytes()), string(r.bytes()), r.bytes()
		}
		switch {
		case r.err != nil:
			return
		case flags&^(lifeShown|lifeRoot) != 0:
			r.fail("unknown flags of a life")
			return
		case (flags&lifeShown != 0) != (i == 0 && !rec.Deleted):
			r.fail("the wrong life is shown")
			return
		case !s.seen.Covers(l.birth.dot) || !s.seen.Covers(l.root.dot):
			r.fail("a life was not seen")
			return
		}
		s.lives = append(s.lives, l)
	}
	if !slices.IsSortedFunc(s.lives, func(a, b *life) int { return a.birth.compare(b.birth) }) {
		r.fail("lives out of order")
	}
	if n == 0 && !rec.Deleted {
		r.fail("no life is shown")
	}
}

// high is the highest stamp in the state.
func (s *state) high() Stamp {
	var h Stamp
	for _, l := range s.lives {
		h = max(h, l.birth.stamp, l.root.stamp)
	}
	return h
}
