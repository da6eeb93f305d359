package crdt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Vector is a version vector: for each origin, the highest sequence of its
// changes that are included, with all before it. An origin that is absent
// contributed nothing.
//
// The vector of a key counts that key's changes only; the vector of a replica
// counts all of them.
type Vector map[Origin]uint64

// Covers reports whether the change d is included. The zero dot always is.
func (v Vector) Covers(d Dot) bool { return d.IsZero() || v[d.Origin] >= d.Seq }

// Note includes the change d and all of its origin before it.
func (v Vector) Note(d Dot) {
	if !d.IsZero() && v[d.Origin] < d.Seq {
		v[d.Origin] = d.Seq
	}
}

// Join includes all that w includes.
func (v Vector) Join(w Vector) {
	for o, seq := range w {
		v.Note(Dot{Origin: o, Seq: seq})
	}
}

// Includes reports whether v includes all that w includes.
func (v Vector) Includes(w Vector) bool {
	for o, seq := range w {
		if v[o] < seq {
			return false
		}
	}
	return true
}

// Clone returns a copy of v, never nil.
func (v Vector) Clone() Vector {
	if v == nil {
		return Vector{}
	}
	return maps.Clone(v)
}

// maxOrigins bounds the origins of a vector that is decoded.
const maxOrigins = 1 << 20

// Append appends the encoding of v to b. Equal vectors encode equally.
func (v Vector) Append(b []byte) []byte {
	origins := make([]Origin, 0, len(v))
	for o, seq := range v {
		if o != 0 && seq != 0 {
			origins = append(origins, o)
		}
	}
	slices.Sort(origins)
	b = binary.AppendUvarint(b, uint64(len(origins)))
	for _, o := range origins {
		b = binary.BigEndian.AppendUint64(b, uint64(o))
		b = binary.AppendUvarint(b, v[o])
	}
	return b
}

// DecodeVector decodes what [Vector.Append] wrote, all of b. It fails with
// [ErrMalformed].
func DecodeVector(b []byte) (Vector, error) {
	r := reader{b: b}
	v := r.vector()
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after the end")
	}
	if r.err != nil {
		return nil, fmt.Errorf("decode vector: %w", r.err)
	}
	return v, nil
}

// reader takes values off the front of b. After the first error it returns
// zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %w", ErrMalformed, errors.New(what))
	}
	r.b = nil
}

func (r *reader) uvarint() uint64 {
	u, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return u
}

// count returns a number of things that follow, each at least size bytes long.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail("count exceeds the bytes left")
		return 0
	}
	return int(n)
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.fail("cut short")
		return 0
	}
	u := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return u
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("cut short")
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) bytes() []byte {
	n := r.count(1)
	if r.err != nil {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) vector() Vector {
	n := r.count(9)
	if n > maxOrigins {
		r.fail("too many origins")
		return nil
	}
	v := make(Vector, n)
	last := Origin(0)
	for range n {
		o, seq := Origin(r.uint64()), r.uvarint()
		if r.err != nil {
			return nil
		}
		if o <= last || seq == 0 {
			r.fail("vector out of order")
			return nil
		}
		last, v[o] = o, seq
	}
	return v
}

// covers reads a vector and reports whether it covers d.
func (r *reader) covers(d Dot) bool {
	covered := d.IsZero()
	for range r.count(9) {
		o, seq := Origin(r.uint64()), r.uvarint()
		covered = covered || r.err == nil && o == d.Origin && seq >= d.Seq
	}
	return covered
}
