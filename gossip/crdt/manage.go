package crdt

import (
	"slices"
	"strings"
)

// fieldsType is the member of a managedFields entry that names the format of
// its field set. There is one format.
const fieldsType = "fieldsType"

// named returns an entry of an unordered list with the members that its name
// says, nil when nothing else is in it.
func named(form, name string, n *node) *node {
	if n == nil || n.kind != object {
		return n
	}
	values := parse([]byte(name))
	keys := keyedBy(form)
	if values == nil || values.kind != list || len(values.items) != len(keys) {
		return n
	}
	out := &node{kind: object}
	for _, m := range n.members {
		if m.name != fieldsType && !slices.Contains(keys, m.name) {
			out.members = append(out.members, m)
		}
	}
	if len(out.members) == 0 {
		return nil
	}
	out.set(fieldsType, quoted("FieldsV1"))
	for i, key := range keys {
		if v := values.items[i]; v.kind == scalar && string(v.raw) != "null" {
			out.set(key, v)
		}
	}
	return out
}

// settle brings the managedFields of an object into the one order and form that
// a join gives them.
func settle(n *node) {
	entries := n.at("metadata", "managedFields")
	form := objectMeta().fields["managedFields"].form
	if entries == nil || entries.empty() {
		return
	}
	names, ok := itemNames(entries, form)
	if !ok {
		return
	}
	type entry struct {
		name string
		node *node
	}
	all := make([]entry, 0, len(names))
	for i, name := range names {
		if item := named(form, name, entries.items[i]); item != nil {
			all = append(all, entry{name, item})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	out := &node{kind: list}
	for _, e := range all {
		out.items = append(out.items, e.node)
	}
	n.get("metadata").set("managedFields", out)
}
