package crdt

import (
	"encoding/binary"
	"slices"
)

// Bounds on what a local write leaves of older ones.
const (
	maxWrites = 24   // of writes that still hold a place: beyond, the oldest one's places go to the new one
	maxClaims = 1000 // of places held: beyond, the new write holds the whole object
)

// claims says which write holds which place of a value, as a tree. A write
// holds what it changed until another changes it.
//
// At each place this is an element of a lattice: the write that put there all
// that is there, and, among equals in that, what has changed below since. So of
// two writes of one place the newer stays, whole, and a change inside a place
// goes with that place when another write replaces or removes it.
type claims struct {
	whole   tag // zero: the same as the place above
	marker  tag // who said what is here when nothing is below
	isEmpty bool
	order   tag      // who ordered the items
	seq     []string // the order it gave them; nil when it is the one they have
	form    string
	kids    []kid[*claims] // by name
}

func (c *claims) kid(name string) *claims {
	if c == nil {
		return nil
	}
	if i, ok := findKid(c.kids, name); ok {
		return c.kids[i].at
	}
	return nil
}

// add notes that the write t changed p.
func (c *claims) add(p *paths, t tag) {
	if p.empty() {
		return
	}
	if p.whole || c.form != "" && c.form != p.form {
		*c = claims{whole: t}
		return
	}
	c.form = p.form
	if p.marked {
		c.marker, c.isEmpty = t, p.isEmpty
	}
	if p.order {
		c.order, c.seq = t, nil
	}
	for _, k := range p.kids {
		i, ok := findKid(c.kids, k.name)
		if !ok {
			c.kids = slices.Insert(c.kids, i, kid[*claims]{k.name, &claims{}})
		}
		c.kids[i].at.add(k.at, t)
	}
}

// each calls f for every tag in the tree.
func (c *claims) each(f func(*tag)) {
	for _, t := range []*tag{&c.whole, &c.marker, &c.order} {
		if !t.isZero() {
			f(t)
		}
	}
	for _, k := range c.kids {
		k.at.each(f)
	}
}

// tags returns the tags in the tree in order.
func (c *claims) tags() []tag {
	var all []tag
	last := tag{}
	c.each(func(t *tag) {
		if *t != last {
			all = append(all, *t)
			last = *t
		}
	})
	slices.SortFunc(all, tag.compare)
	return slices.Compact(all)
}

// bound keeps the tree within its bounds at the expense of the write t, which
// is in it: t takes over.
func (c *claims) bound(t tag) {
	size := 0
	c.each(func(*tag) { size++ })
	if size > maxClaims {
		*c = claims{whole: t}
		return
	}
	all := slices.DeleteFunc(c.tags(), tag.constant)
	if len(all) <= maxWrites {
		return
	}
	limit := all[len(all)-maxWrites]
	for _, k := range c.kids {
		k.at.each(func(held *tag) {
			if held.compare(limit) < 0 && !held.constant() {
				*held = t
			}
		})
	}
	for _, held := range []*tag{&c.marker, &c.order} {
		if !held.isZero() && held.compare(limit) < 0 {
			*held = t
		}
	}
}

const (
	claimWhole = 1 << iota
	claimMarker
	claimEmpty
	claimOrder
	claimSeq
	claimKids
)

// appendClaims appends the encoding of c: the table of its tags, then the tree.
func appendClaims(b []byte, c *claims) []byte {
	tags := c.tags()
	b = binary.AppendUvarint(b, uint64(len(tags)))
	index := make(map[tag]uint64, len(tags))
	for i, t := range tags {
		index[t] = uint64(i)
		b = appendTag(b, t)
	}
	return c.append(b, index, &names{})
}

func (c *claims) append(b []byte, index map[tag]uint64, t *names) []byte {
	var flags byte
	set := func(on bool, flag byte) {
		if on {
			flags |= flag
		}
	}
	set(!c.whole.isZero(), claimWhole)
	set(!c.marker.isZero(), claimMarker)
	set(c.isEmpty, claimEmpty)
	set(!c.order.isZero(), claimOrder)
	set(c.seq != nil, claimSeq)
	set(len(c.kids) > 0, claimKids)
	b = append(b, flags)
	for _, held := range []tag{c.whole, c.marker, c.order} {
		if !held.isZero() {
			b = binary.AppendUvarint(b, index[held])
		}
	}
	if flags&^claimWhole == 0 {
		return b
	}
	b = t.append(b, c.form)
	if c.seq != nil {
		b = binary.AppendUvarint(b, uint64(len(c.seq)))
		for _, name := range c.seq {
			b = t.append(b, name)
		}
	}
	if len(c.kids) > 0 {
		b = binary.AppendUvarint(b, uint64(len(c.kids)))
		for _, k := range c.kids {
			b = t.append(b, k.name)
			b = k.at.append(b, index, t)
		}
	}
	return b
}

// claims reads what appendClaims wrote. Every tag must be one that was seen.
func (r *reader) claims(seen Vector) *claims {
	n := r.count(17)
	table := make([]tag, 0, n)
	for range n {
		t := r.anyTag()
		switch {
		case r.err != nil:
			return nil
		case !t.constant() && !seen.Covers(t.dot):
			r.fail("a write was not seen")
			return nil
		case len(table) > 0 && table[len(table)-1].compare(t) >= 0:
			r.fail("writes out of order")
			return nil
		}
		table = append(table, t)
	}
	c := r.claim(table, &names{}, 0)
	if r.err == nil && c.whole.isZero() {
		r.fail("nobody wrote the value")
	}
	return c
}

func (r *reader) claim(table []tag, t *names, depth int) *claims {
	flags := r.byte()
	c := &claims{isEmpty: flags&claimEmpty != 0}
	has := func(flag byte) bool { return flags&flag != 0 }
	if flags >= claimKids<<1 || has(claimEmpty) && !has(claimMarker) || has(claimSeq) && !has(claimOrder) || depth > maxDepth {
		r.fail("bad claim")
	}
	r.held(has(claimWhole), &c.whole, table)
	r.held(has(claimMarker), &c.marker, table)
	r.held(has(claimOrder), &c.order, table)
	if r.err != nil || flags&^claimWhole == 0 {
		return c
	}
	c.form = t.read(r)
	if r.err == nil && !validForm(c.form) {
		r.fail("unknown form")
	}
	if has(claimSeq) {
		n := r.count(1)
		c.seq = make([]string, 0, n)
		for range n {
			c.seq = append(c.seq, t.read(r))
		}
	}
	if !has(claimKids) {
		return c
	}
	n := r.count(2)
	for range n {
		name := t.read(r)
		at := r.claim(table, t, depth+1)
		if r.err != nil {
			return c
		}
		if len(c.kids) > 0 && name <= c.kids[len(c.kids)-1].name {
			r.fail("names out of order")
			return c
		}
		c.kids = append(c.kids, kid[*claims]{name, at})
	}
	return c
}

func (r *reader) held(there bool, t *tag, table []tag) {
	if !there {
		return
	}
	i := r.uvarint()
	if r.err == nil && i >= uint64(len(table)) {
		r.fail("unknown write")
	}
	if r.err == nil {
		*t = table[i]
	}
}
