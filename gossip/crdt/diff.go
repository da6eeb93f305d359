package crdt

import (
	"slices"
	"strings"
)

// diff returns what changed from old to now, nil when nothing did. Either may
// be absent.
func diff(old, now *node, t *Type) *paths {
	switch {
	case old == nil && now == nil:
		return nil
	case old == nil:
		return added(now, t)
	case now == nil:
		return removed(old, t)
	}
	form := t.formOf(now)
	switch {
	case form == "" || old.kind != now.kind:
		if old.equal(now) {
			return nil
		}
		return &paths{whole: true}
	case form == formFields:
		return diffObjects(old, now, t)
	default:
		return diffLists(old, now, t, form)
	}
}

func diffObjects(old, now *node, t *Type) *paths {
	p := &paths{}
	if old.empty() != now.empty() {
		p.mark(formFields, now.empty())
	}
	i, j := 0, 0
	for i < len(old.members) || j < len(now.members) {
		var name string
		var o, n *node
		switch c := compareFront(old.members[i:], now.members[j:]); {
		case c < 0:
			name, o = old.members[i].name, old.members[i].node
			i++
		case c > 0:
			name, n = now.members[j].name, now.members[j].node
			j++
		default:
			name, o, n = old.members[i].name, old.members[i].node, now.members[j].node
			i++
			j++
		}
		if at := diff(o, n, t.field(name)); at != nil {
			p.form = formFields
			p.kids = append(p.kids, kid[*paths]{name, at})
		}
	}
	if p.empty() {
		return nil
	}
	return p
}

func compareFront(a, b []member) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return strings.Compare(a[0].name, b[0].name)
}

func diffLists(old, now *node, t *Type, form string) *paths {
	oldNames, ok := itemNames(old, form)
	nowNames, okNow := itemNames(now, form)
	if !ok || !okNow {
		if old.equal(now) {
			return nil
		}
		return &paths{whole: true}
	}
	p := &paths{form: form}
	if old.empty() != now.empty() {
		p.mark(form, now.empty())
	}
	atOld, atNow := places(oldNames), places(nowNames)
	for i, name := range oldNames {
		var n *node
		if j, ok := atNow[name]; ok {
			n = now.items[j]
		} else if t.least {
			return &paths{whole: true} // the other side may take the last one
		}
		p.item(form, name, old.items[i], n, t.item())
	}
	for j, name := range nowNames {
		if _, ok := atOld[name]; !ok {
			p.item(form, name, nil, now.items[j], t.item())
		}
	}
	p.order = !strings.HasPrefix(form, formUnordered) && !slices.Equal(oldNames, nowNames)
	if p.empty() {
		return nil
	}
	p.sort()
	return p
}

func places(names []string) map[string]int {
	at := make(map[string]int, len(names))
	for i, name := range names {
		at[name] = i
	}
	return at
}

// item adds what changed in one item of a list. An item comes and goes whole,
// but for the entries of an unordered list: they are what is in them.
func (p *paths) item(form, name string, old, now *node, t *Type) {
	var at *paths
	switch {
	case strings.HasPrefix(form, formUnordered):
		at = diffMembers(old, now, keyedBy(form))
	case old == nil || now == nil:
		at = &paths{whole: true}
	default:
		at = diff(old, now, t)
	}
	if at != nil {
		p.kids = append(p.kids, kid[*paths]{name, at})
	}
}

// diffMembers is diff for an entry of an unordered list, without what its name
// says.
func diffMembers(old, now *node, keys []string) *paths {
	without := func(n *node) *node {
		out := &node{kind: object}
		if n == nil {
			return out
		}
		for _, m := range n.members {
			if !slices.Contains(keys, m.name) && m.name != fieldsType {
				out.members = append(out.members, m)
			}
		}
		return out
	}
	p := diffObjects(without(old), without(now), nil)
	if p == nil {
		return nil
	}
	p.marked = false
	if len(p.kids) == 0 {
		return nil
	}
	return p
}

func (p *paths) sort() {
	slices.SortFunc(p.kids, func(a, b kid[*paths]) int { return strings.Compare(a.name, b.name) })
}

// added returns what a value brings that was absent before. An object comes as
// its members: both sides may have begun one.
func added(n *node, t *Type) *paths {
	form := t.formOf(n)
	switch {
	case form == "":
		return &paths{whole: true}
	case n.empty():
		return &paths{form: form, marked: true, isEmpty: true}
	case form == formFields:
		p := &paths{form: form}
		for _, m := range n.members {
			p.kids = append(p.kids, kid[*paths]{m.name, added(m.node, t.field(m.name))})
		}
		return p
	}
	p := diffLists(&node{kind: list}, n, t, form)
	if !p.whole {
		p.marked = false
	}
	return p
}

// removed returns what a value takes with it that is absent now.
func removed(o *node, t *Type) *paths {
	form := t.formOf(o)
	switch {
	case form == "" || t != nil && t.required:
		return &paths{whole: true}
	case form == formFields:
		p := &paths{form: form, marked: true}
		for _, m := range o.members {
			p.kids = append(p.kids, kid[*paths]{m.name, removed(m.node, t.field(m.name))})
		}
		return p
	case o.empty():
		return &paths{form: form, marked: true}
	}
	p := diffLists(o, &node{kind: list}, t, form)
	if !p.whole {
		p.isEmpty = false
	}
	return p
}
