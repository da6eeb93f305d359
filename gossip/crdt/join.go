package crdt

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

// joiner joins the claims and values of one life, and notes what loses.
type joiner struct {
	key, uid  string
	a, b      side
	at        []step // from the root to the place looked at
	conflicts []Conflict
}

type side struct {
	seen  Vector
	value *node
}

type step struct{ form, name string }

// places joins what the two sides have at one place. Its order is that of
// [claims]: the newer write of all that is here wins with all that is below;
// where both have the same, what is below joins.
func (j *joiner) places(ac *claims, av *node, bc *claims, bv *node) (*claims, *node) {
	switch c := ac.wrote().compare(bc.wrote()); {
	case c > 0:
		j.lost(bc, bv, j.a.seen, ac, av)
		return ac, av
	case c < 0:
		j.lost(ac, av, j.b.seen, bc, bv)
		return bc, bv
	}
	switch {
	case ac.bare() && bc.bare():
		return cmp.Or(ac, bc), pick(av, bv)
	case ac.bare():
		return bc, bv
	case bc.bare():
		return ac, av
	case ac.form > bc.form:
		j.lost(bc, bv, j.a.seen, ac, av)
		return ac, av
	case ac.form < bc.form:
		j.lost(ac, av, j.b.seen, bc, bv)
		return bc, bv
	case ac.form == formFields:
		return j.objects(ac, av, bc, bv)
	}
	return j.lists(ac, av, bc, bv)
}

// wrote returns who put there all that is there, zero for whoever did so above.
func (c *claims) wrote() tag {
	if c == nil {
		return tag{}
	}
	return c.whole
}

// bare reports whether nothing changed below since.
func (c *claims) bare() bool { return c == nil || c.form == "" }

// pick returns what both sides have from the same write. Were they to differ,
// which they do not, the same one would be taken everywhere.
func pick(av, bv *node) *node {
	switch {
	case av == nil || bv == nil:
		return cmp.Or(av, bv)
	case av.equal(bv) || bytes.Compare(av.append(nil), bv.append(nil)) > 0:
		return av
	}
	return bv
}

// begin returns the joined claims of a place but for its children, and whether
// the container stays when there are none.
func begin(ac *claims, av *node, bc *claims, bv *node) (out *claims, stays bool) {
	out = &claims{whole: ac.whole, form: ac.form}
	switch win := ac; {
	case ac.marker.isZero() && bc.marker.isZero():
		return out, av.empty() || bv.empty()
	default:
		if bc.marker.compare(ac.marker) > 0 {
			win = bc
		}
		out.marker, out.isEmpty = win.marker, win.isEmpty
		return out, win.isEmpty
	}
}

// union calls f for each child that either side claims, by name.
func union(ac, bc *claims, f func(name string, a, b *claims)) {
	a, b := ac.kids, bc.kids
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].name < b[0].name:
			f(a[0].name, a[0].at, nil)
			a = a[1:]
		case len(a) == 0 || b[0].name < a[0].name:
			f(b[0].name, nil, b[0].at)
			b = b[1:]
		default:
			f(a[0].name, a[0].at, b[0].at)
			a, b = a[1:], b[1:]
		}
	}
}

// kid joins one child. A side that does not claim it has it as it was.
func (j *joiner) kid(out *claims, name string, ac *claims, av *node, bc *claims, bv *node) *node {
	j.at = append(j.at, step{out.form, name})
	defer func() { j.at = j.at[:len(j.at)-1] }()
	c, v := bc, bv
	switch {
	case bc == nil:
		c, v = ac, av
	case ac != nil:
		c, v = j.places(ac, av, bc, bv)
	}
	out.kids = append(out.kids, kid[*claims]{name, c})
	return v
}

func (j *joiner) objects(ac *claims, av *node, bc *claims, bv *node) (*claims, *node) {
	out, stays := begin(ac, av, bc, bv)
	v := &node{kind: object}
	union(ac, bc, func(name string, a, b *claims) {
		if n := j.kid(out, name, a, av.get(name), b, bv.get(name)); n != nil {
			v.members = append(v.members, member{name, n})
		}
	})
	for _, n := range []*node{av, bv} {
		if n == nil || n.kind != object {
			continue
		}
		for _, m := range n.members {
			if out.kid(m.name) == nil {
				v.members = append(v.members, member{m.name, pick(av.get(m.name), bv.get(m.name))})
			}
		}
	}
	slices.SortFunc(v.members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	v.members = slices.CompactFunc(v.members, func(a, b member) bool { return a.name == b.name })
	if len(v.members) == 0 && !stays {
		return out, nil
	}
	return out, v
}

// items is a list by the names of its items.
type items struct {
	names  []string
	byName map[string]*node
}

func itemsOf(n *node, form string) (items, bool) {
	names, ok := itemNames(n, form)
	if !ok {
		return items{}, false
	}
	all := items{names, make(map[string]*node, len(names))}
	for i, name := range names {
		all.byName[name] = n.items[i]
	}
	return all, true
}

func (j *joiner) lists(ac *claims, av *node, bc *claims, bv *node) (*claims, *node) {
	form := ac.form
	ai, aok := itemsOf(av, form)
	bi, bok := itemsOf(bv, form)
	switch {
	case aok && !bok:
		return ac, av
	case bok && !aok:
		return bc, bv
	case !aok:
		if pick(av, bv) == av {
			return ac, av
		}
		return bc, bv
	}
	out, stays := begin(ac, av, bc, bv)
	alive := map[string]*node{}
	union(ac, bc, func(name string, a, b *claims) {
		n := j.kid(out, name, a, ai.byName[name], b, bi.byName[name])
		if strings.HasPrefix(form, formUnordered) {
			n = named(form, name, n)
		}
		if n != nil {
			alive[name] = n
		}
	})
	for _, side := range []items{ai, bi} {
		for _, name := range side.names {
			if out.kid(name) == nil {
				alive[name] = pick(ai.byName[name], bi.byName[name])
			}
		}
	}
	names := arrange(out, ac, ai.names, bc, bi.names, alive)
	if len(names) == 0 && !stays {
		return out, nil
	}
	v := &node{kind: list}
	for _, name := range names {
		v.items = append(v.items, alive[name])
	}
	return out, v
}

// arrange orders the items that are alive: first those that the newest order
// names, as it has them; then those it did not know, by age. It notes the order
// in out.
func arrange(out, ac *claims, an []string, bc *claims, bn []string, alive map[string]*node) []string {
	rest := make([]string, 0, len(alive))
	for name := range alive {
		rest = append(rest, name)
	}
	if strings.HasPrefix(out.form, formUnordered) {
		slices.Sort(rest)
		return rest
	}
	seq := func(c *claims, names []string) []string {
		if c.seq != nil {
			return c.seq
		}
		return names
	}
	order := seq(ac, an)
	if bc.order.compare(ac.order) > 0 || bc.order == ac.order && len(order) < len(seq(bc, bn)) {
		order = seq(bc, bn)
	}
	out.order = ac.order
	if bc.order.compare(ac.order) > 0 {
		out.order = bc.order
	}
	place := make(map[string]int, len(order))
	for i, name := range order {
		place[name] = i + 1
	}
	last := len(order) + 1
	slices.SortFunc(rest, func(x, y string) int {
		px, py := cmp.Or(place[x], last), cmp.Or(place[y], last)
		return cmp.Or(cmp.Compare(px, py), out.kid(x).wrote().compare(out.kid(y).wrote()), cmp.Compare(x, y))
	})
	if !out.order.isZero() && !slices.Equal(order, rest) {
		out.seq = order
		if out.seq == nil {
			out.seq = []string{}
		}
	}
	return rest
}
