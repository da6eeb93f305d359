package crdt

import "slices"

// A write of a field is also the last word on which managers own it: whoever
// wrote the value wrote the entries of managedFields with it. So each claim of
// a place stands for claims of that place in the field set of every manager.
// They are written out for a join and taken back after.

// fieldPath is a place as the field sets of managedFields write it.
type fieldPath []string

// fieldName translates one step of a place.
func fieldName(form, name string) (string, bool) {
	switch {
	case form == formFields:
		return "f:" + name, true
	case form == formSet:
		return "v:" + name, true
	case !isKeyed(form):
		return "", false
	}
	values := parse([]byte(name))
	keys := keyedBy(form)
	if values == nil || values.kind != list || len(values.items) != len(keys) {
		return "", false
	}
	item := &node{kind: object}
	for i, key := range keys {
		if v := values.items[i]; v.kind == scalar && string(v.raw) != "null" {
			item.set(key, v)
		}
	}
	return "k:" + string(item.append(nil)), true
}

// eachPlace calls f for every place below c that one write holds, from the top
// down.
func (c *claims) eachPlace(at fieldPath, f func(fieldPath, tag)) {
	for _, k := range c.kids {
		name, ok := fieldName(c.form, k.name)
		if !ok || len(at) == 1 && at[0] == "f:metadata" && k.name == "managedFields" {
			continue
		}
		here := append(slices.Clone(at), name)
		if !k.at.whole.isZero() {
			f(here, k.at.whole)
		}
		k.at.eachPlace(here, f)
	}
}

// managers returns the names of the entries of managedFields, in the values
// and the claims of them, whose field sets speak of the version the object is
// stored in.
func managers(version string, values []*node, held ...*claims) []string {
	var all []string
	form := objectMeta().fields["managedFields"].form
	for _, v := range values {
		if names, ok := itemNames(v.at("metadata", "managedFields"), form); ok {
			all = append(all, names...)
		}
	}
	for _, c := range held {
		if entries := c.kid("metadata").kid("managedFields"); entries != nil && entries.form == form {
			for _, k := range entries.kids {
				all = append(all, k.name)
			}
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(name string) bool {
		values := parse([]byte(name))
		return values == nil || len(values.items) != len(managerKeys) || values.items[len(managerKeys)-1].text() != version
	})
}

// orderly reports whether the entries of managedFields can be told apart and
// their field sets are such: else the object merges as one value.
func orderly(n *node) bool {
	meta := n.get("metadata")
	entries := meta.get("managedFields")
	if meta == nil || meta.kind != object || entries == nil {
		return meta != nil && meta.kind == object
	}
	if _, ok := itemNames(entries, objectMeta().fields["managedFields"].form); !ok {
		return false
	}
	for _, e := range entries.items {
		if f := e.get("fieldsV1"); f != nil && !allObjects(f) {
			return false
		}
	}
	return true
}

func allObjects(n *node) bool {
	return n.kind == object && !slices.ContainsFunc(n.members, func(m member) bool { return !allObjects(m.node) })
}

// owned brings the claims of a value into the form that they have after a
// join.
func (c *claims) owned(n *node) {
	entries := managers(n.get("apiVersion").text(), []*node{n}, c)
	c.spell(entries)
	c.unspell(entries)
}

// spell writes out the claims that stand for those of the managers.
func (c *claims) spell(managers []string) {
	form := objectMeta().fields["managedFields"].form
	for _, manager := range managers {
		c.eachPlace(nil, func(at fieldPath, t tag) {
			to := c.reach(t, step{formFields, "metadata"}, step{formFields, "managedFields"}, step{form, manager}, step{formFields, "fieldsV1"})
			for _, name := range at {
				to = to.reach(t, step{formFields, name})
			}
			if to != nil && to.whole.compare(t) < 0 {
				to.whole = t
				to.forget(t)
			}
		})
	}
}

// reach returns the place below, made when it is not there; nil when all of it
// was written after t, or is of another form.
func (c *claims) reach(t tag, steps ...step) *claims {
	for _, s := range steps {
		if c == nil || c.form != "" && c.form != s.form {
			return nil
		}
		c.form = s.form
		i, ok := findKid(c.kids, s.name)
		if !ok {
			c.kids = slices.Insert(c.kids, i, kid[*claims]{s.name, &claims{}})
		}
		if c = c.kids[i].at; c.whole.compare(t) > 0 {
			return nil
		}
	}
	return c
}

// forget drops what is below and not after t.
func (c *claims) forget(t tag) {
	if c.marker.compare(t) <= 0 {
		c.marker, c.isEmpty = tag{}, false
	}
	if c.order.compare(t) <= 0 {
		c.order, c.seq = tag{}, nil
	}
	c.kids = slices.DeleteFunc(c.kids, func(k kid[*claims]) bool {
		if !k.at.whole.isZero() && k.at.whole.compare(t) <= 0 {
			k.at.whole = tag{}
		}
		k.at.forget(t)
		return k.at.nothing()
	})
	c.settle()
}

func (c *claims) nothing() bool {
	return c.whole.isZero() && c.marker.isZero() && c.order.isZero() && len(c.kids) == 0
}

func (c *claims) settle() {
	if c.marker.isZero() && c.order.isZero() && len(c.kids) == 0 {
		c.form = ""
	}
}

// unspell takes back what spell wrote out, in what a join made of it.
func (c *claims) unspell(managers []string) {
	entries := c.kid("metadata").kid("managedFields")
	if entries == nil {
		return
	}
	for _, manager := range managers {
		fields := entries.kid(manager).kid("fieldsV1")
		if fields == nil {
			continue
		}
		c.eachPlace(nil, func(at fieldPath, t tag) {
			to := fields
			for _, name := range at {
				to = to.kid(name)
			}
			if to != nil && to.whole.compare(t) <= 0 {
				to.whole = tag{}
				to.forget(t)
			}
		})
	}
	c.kid("metadata").kid("managedFields").drop()
	for _, name := range []string{"managedFields", "metadata"} {
		parent := c
		if name == "managedFields" {
			parent = c.kid("metadata")
		}
		if i, ok := findKid(parent.kids, name); ok && parent.kids[i].at.nothing() {
			parent.kids = slices.Delete(parent.kids, i, i+1)
			parent.settle()
		}
	}
}

// drop removes the places below that nobody claims.
func (c *claims) drop() {
	c.kids = slices.DeleteFunc(c.kids, func(k kid[*claims]) bool {
		k.at.drop()
		return k.at.nothing()
	})
	c.settle()
}

// isBookkeeping reports whether nobody writes a place for its own sake.
func isBookkeeping(at []step) bool {
	return len(at) >= 2 && at[0].name == "metadata" && (at[1].name == "managedFields" || at[1].name == "creationTimestamp")
}
