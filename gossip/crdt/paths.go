package crdt

import (
	"encoding/binary"
	"slices"
	"strings"
)

// The form of a place says by what names its children go.
//
//	"f"            an object: member names
//	"v"            a list that is a set: the items themselves, in JSON
//	"k:name,port"  a list whose items are told apart by these members: a JSON
//	               list of their values, null where one is missing
//	"m:manager"    the same, and the order of the items means nothing
const (
	formFields    = "f"
	formSet       = "v"
	formKeyed     = "k:"
	formUnordered = "m:"
)

func keyedBy(form string) []string { return strings.Split(form[2:], ",") }

func isKeyed(form string) bool {
	return len(form) > 2 && (form[:2] == formKeyed || form[:2] == formUnordered)
}

func validForm(form string) bool { return form == formFields || form == formSet || isKeyed(form) }

// paths is the set of places that one write changed, as a tree: what it changed
// at one place and below.
type paths struct {
	whole   bool // all that is here; nothing further is said
	marked  bool // what is here when nothing is below: the empty container, or
	isEmpty bool // nothing at all
	order   bool // the order of the items
	form    string
	kids    []kid[*paths] // by name
}

type kid[T any] struct {
	name string
	at   T
}

func findKid[T any](kids []kid[T], name string) (int, bool) {
	return slices.BinarySearchFunc(kids, name, func(k kid[T], name string) int { return strings.Compare(k.name, name) })
}

// kid returns the child by name, making it when it is not there.
func (p *paths) kid(form, name string) *paths {
	p.form = form
	i, ok := findKid(p.kids, name)
	if !ok {
		p.kids = slices.Insert(p.kids, i, kid[*paths]{name, &paths{}})
	}
	return p.kids[i].at
}

// take adds all that is at the place.
func (p *paths) take() { *p = paths{whole: true} }

func (p *paths) mark(form string, isEmpty bool) {
	p.form, p.marked, p.isEmpty = form, true, isEmpty
}

func (p *paths) empty() bool { return !p.whole && !p.marked && !p.order && len(p.kids) == 0 }

// prune drops places below at which nothing changed.
func (p *paths) prune() {
	p.kids = slices.DeleteFunc(p.kids, func(k kid[*paths]) bool {
		k.at.prune()
		return k.at.empty()
	})
	if !p.marked && !p.order && len(p.kids) == 0 {
		p.form = ""
	}
}

// touches reports whether the set has something at or below the members, or
// all that is above them.
func (p *paths) touches(members []string) bool {
	for _, name := range members {
		if p.whole {
			return true
		}
		if p.form != formFields {
			return !p.empty()
		}
		i, ok := findKid(p.kids, name)
		if !ok {
			return false
		}
		p = p.kids[i].at
	}
	return !p.empty()
}

// takeAt adds all that is at the members.
func (p *paths) takeAt(members []string) {
	for _, name := range members {
		if p.whole {
			return
		}
		if p.form != "" && p.form != formFields {
			break
		}
		p = p.kid(formFields, name)
	}
	p.take()
}

const (
	pathWhole = 1 << iota
	pathMarked
	pathEmpty
	pathOrder
	pathKids
)

// names numbers the strings of an encoding, so that each stands in it once.
type names struct {
	index map[string]uint64
	list  []string
}

func (t *names) append(b []byte, s string) []byte {
	if i, ok := t.index[s]; ok {
		return binary.AppendUvarint(b, i)
	}
	if t.index == nil {
		t.index = map[string]uint64{}
	}
	t.index[s] = uint64(len(t.index) + 1)
	b = append(b, 0)
	return appendBlob(b, s)
}

func (t *names) read(r *reader) string {
	i := r.uvarint()
	if r.err != nil {
		return ""
	}
	if i == 0 {
		s := string(r.bytes())
		t.list = append(t.list, s)
		return s
	}
	if i > uint64(len(t.list)) {
		r.fail("unknown name")
		return ""
	}
	return t.list[i-1]
}

// encode returns the set in bytes, never none.
func (p *paths) encode() []byte { return p.append(nil, &names{}) }

func (p *paths) append(b []byte, t *names) []byte {
	if p.whole {
		return append(b, pathWhole)
	}
	var flags byte
	if p.marked {
		flags |= pathMarked
		if p.isEmpty {
			flags |= pathEmpty
		}
	}
	if p.order {
		flags |= pathOrder
	}
	if len(p.kids) > 0 {
		flags |= pathKids
	}
	b = append(b, flags)
	if flags != 0 {
		b = t.append(b, p.form)
	}
	if len(p.kids) > 0 {
		b = binary.AppendUvarint(b, uint64(len(p.kids)))
		for _, k := range p.kids {
			b = t.append(b, k.name)
			b = k.at.append(b, t)
		}
	}
	return b
}

// decodePaths reads what [paths.encode] wrote.
func decodePaths(b []byte) (*paths, error) {
	r := reader{b: b}
	p := r.paths(&names{}, 0)
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after the end")
	}
	return p, r.err
}

func (r *reader) paths(t *names, depth int) *paths {
	flags := r.byte()
	p := &paths{
		whole:  flags&pathWhole != 0,
		marked: flags&pathMarked != 0, isEmpty: flags&pathEmpty != 0,
		order: flags&pathOrder != 0,
	}
	switch {
	case r.err != nil || flags == 0 || flags == pathWhole:
		return p
	case p.whole || p.isEmpty && !p.marked || flags >= pathKids<<1 || depth > maxDepth:
		r.fail("bad path")
		return p
	}
	p.form = t.read(r)
	if r.err == nil && !validForm(p.form) {
		r.fail("unknown form")
	}
	if flags&pathKids == 0 {
		return p
	}
	n := r.count(2)
	for range n {
		name := t.read(r)
		at := r.paths(t, depth+1)
		if r.err != nil {
			return p
		}
		if len(p.kids) > 0 && name <= p.kids[len(p.kids)-1].name {
			r.fail("names out of order")
			return p
		}
		p.kids = append(p.kids, kid[*paths]{name, at})
	}
	return p
}
