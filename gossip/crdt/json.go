package crdt

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"unsafe"
)

// maxDepth bounds the nesting of a value that is merged by field. A deeper one
// merges whole.
const maxDepth = 500

type kind uint8

const (
	scalar kind = iota
	list
	object
)

// node is a JSON value. A nil node is one that is absent.
type node struct {
	kind    kind
	raw     []byte // of a scalar, as it stands in canonical JSON
	items   []*node
	members []member // by name
}

type member struct {
	name string
	node *node
}

// get returns the member name of an object, nil when n has none.
func (n *node) get(name string) *node {
	if n == nil || n.kind != object {
		return nil
	}
	i, ok := slices.BinarySearchFunc(n.members, name, func(m member, name string) int { return cmp.Compare(m.name, name) })
	if !ok {
		return nil
	}
	return n.members[i].node
}

// set puts a member into an object, or takes it out when v is nil.
func (n *node) set(name string, v *node) {
	i, ok := slices.BinarySearchFunc(n.members, name, func(m member, name string) int { return cmp.Compare(m.name, name) })
	switch {
	case ok && v == nil:
		n.members = slices.Delete(n.members, i, i+1)
	case ok:
		n.members[i].node = v
	case v != nil:
		n.members = slices.Insert(n.members, i, member{name, v})
	}
}

// at follows members, nil when one is missing.
func (n *node) at(names ...string) *node {
	for _, name := range names {
		n = n.get(name)
	}
	return n
}

// text returns the string that a scalar holds, empty for anything else.
func (n *node) text() string {
	if n == nil || n.kind != scalar || n.raw[0] != '"' {
		return ""
	}
	s, _ := unescape(n.raw[1 : len(n.raw)-1])
	return string(s)
}

// integer returns the whole number that a scalar holds, 0 for anything else.
func (n *node) integer() int64 {
	if n == nil || n.kind != scalar {
		return 0
	}
	i, err := strconv.ParseInt(string(n.raw), 10, 64)
	if err != nil {
		return 0
	}
	return i
}

// empty reports whether n is an object or a list with nothing in it.
func (n *node) empty() bool {
	return n != nil && n.kind != scalar && len(n.members)+len(n.items) == 0
}

func (n *node) equal(m *node) bool {
	if n == m {
		return true
	}
	if n == nil || m == nil || n.kind != m.kind || len(n.items) != len(m.items) || len(n.members) != len(m.members) {
		return false
	}
	if !bytes.Equal(n.raw, m.raw) {
		return false
	}
	for i := range n.items {
		if !n.items[i].equal(m.items[i]) {
			return false
		}
	}
	for i := range n.members {
		if n.members[i].name != m.members[i].name || !n.members[i].node.equal(m.members[i].node) {
			return false
		}
	}
	return true
}

// append appends n in canonical JSON: no space, members by name, strings with
// as few escapes as there must be, numbers as they were written.
func (n *node) append(b []byte) []byte {
	switch n.kind {
	case list:
		b = append(b, '[')
		for i, item := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.append(b)
		}
		return append(b, ']')
	case object:
		b = append(b, '{')
		for i := range n.members {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, n.members[i].name)
			b = append(b, ':')
			b = n.members[i].node.append(b)
		}
		return append(b, '}')
	}
	return append(b, n.raw...)
}

// parse returns the JSON value of b, nil when b is not exactly one, when an
// object names a member twice or when it nests too deep. What it returns refers
// to b, which must not change any more.
func parse(b []byte) *node {
	p := parser{b: b, s: unsafe.String(unsafe.SliceData(b), len(b))} // values are large and never change
	p.space()
	n := p.value(0)
	p.space()
	if p.bad || p.i != len(b) {
		return nil
	}
	return n
}

// parseObject is parse for objects only.
func parseObject(b []byte) *node {
	if n := parse(b); n != nil && n.kind == object {
		return n
	}
	return nil
}

// parser reads one value. What it makes comes out of slabs, and names are parts
// of one string: a value has hundreds of them.
type parser struct {
	b       []byte
	s       string // the same
	i       int
	bad     bool
	nodes   []node
	members slab[member]
	items   slab[*node]
}

// slab hands out slices of what was pushed since a mark.
type slab[T any] struct{ stack, free []T }

func (s *slab[T]) pop(mark int) []T {
	n := len(s.stack) - mark
	if n > len(s.free) {
		s.free = make([]T, max(n, 64))
	}
	out := s.free[:n:n]
	s.free = s.free[n:]
	copy(out, s.stack[mark:])
	s.stack = s.stack[:mark]
	return out
}

func (p *parser) fail() *node {
	p.bad, p.i = true, len(p.b)
	return nil
}

func (p *parser) next() byte {
	if p.i < len(p.b) {
		return p.b[p.i]
	}
	return 0
}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

func (p *parser) node(k kind) *node {
	if len(p.nodes) == 0 {
		p.nodes = make([]node, 64)
	}
	n := &p.nodes[0]
	p.nodes = p.nodes[1:]
	n.kind = k
	return n
}

func (p *parser) value(depth int) *node {
	if depth > maxDepth {
		return p.fail()
	}
	switch c := p.next(); c {
	case '{':
		return p.object(depth)
	case '[':
		return p.list(depth)
	case '"':
		s, ok := p.str()
		if !ok {
			return p.fail()
		}
		n := p.node(scalar)
		n.raw = s
		return n
	case 't':
		return p.word("true")
	case 'f':
		return p.word("false")
	case 'n':
		return p.word("null")
	default:
		return p.number()
	}
}

func (p *parser) word(w string) *node {
	if len(p.b)-p.i < len(w) || string(p.b[p.i:p.i+len(w)]) != w {
		return p.fail()
	}
	n := p.node(scalar)
	n.raw = p.b[p.i : p.i+len(w) : p.i+len(w)]
	p.i += len(w)
	return n
}

func (p *parser) number() *node {
	start := p.i
	if p.next() == '-' {
		p.i++
	}
	if p.next() == '0' {
		p.i++
	} else if !p.digits() {
		return p.fail()
	}
	if p.next() == '.' {
		p.i++
		if !p.digits() {
			return p.fail()
		}
	}
	if c := p.next(); c == 'e' || c == 'E' {
		p.i++
		if c := p.next(); c == '+' || c == '-' {
			p.i++
		}
		if !p.digits() {
			return p.fail()
		}
	}
	n := p.node(scalar)
	n.raw = p.b[start:p.i:p.i]
	return n
}

func (p *parser) digits() bool {
	start := p.i
	for c := p.next(); c >= '0' && c <= '9'; c = p.next() {
		p.i++
	}
	return p.i > start
}

func (p *parser) list(depth int) *node {
	n := p.node(list)
	p.i++
	p.space()
	if p.next() == ']' {
		p.i++
		return n
	}
	mark := len(p.items.stack)
	for {
		p.space()
		item := p.value(depth + 1)
		if p.bad {
			return nil
		}
		p.items.stack = append(p.items.stack, item)
		p.space()
		switch p.next() {
		case ',':
			p.i++
		case ']':
			p.i++
			n.items = p.items.pop(mark)
			return n
		default:
			return p.fail()
		}
	}
}

func (p *parser) object(depth int) *node {
	n := p.node(object)
	p.i++
	p.space()
	if p.next() == '}' {
		p.i++
		return n
	}
	mark := len(p.members.stack)
	for {
		p.space()
		name, ok := p.name()
		if !ok {
			return p.fail()
		}
		p.space()
		if p.next() != ':' {
			return p.fail()
		}
		p.i++
		p.space()
		v := p.value(depth + 1)
		if p.bad {
			return nil
		}
		p.members.stack = append(p.members.stack, member{name, v})
		p.space()
		switch p.next() {
		case ',':
			p.i++
			continue
		case '}':
			p.i++
		default:
			return p.fail()
		}
		break
	}
	n.members = p.members.pop(mark)
	byName := func(a, b member) int { return cmp.Compare(a.name, b.name) }
	if !slices.IsSortedFunc(n.members, byName) {
		slices.SortFunc(n.members, byName)
	}
	for i := 1; i < len(n.members); i++ {
		if n.members[i].name == n.members[i-1].name {
			return p.fail()
		}
	}
	return n
}
