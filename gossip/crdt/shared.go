package crdt

import (
	"hash/fnv"
	"slices"
)

// A shared UID is one that every node gives to the object that it makes under
// a key at some point: UUIDs of version 8. The creates of several nodes then
// begin one life, which is told by its UID. A create of another kind of UID
// begins a life of its own.
//
// Nobody who ends a shared life has seen all the creates that began it. So the
// key remembers the UID, and the life is over wherever that is known.

// isShared reports whether a UID is a shared one.
func isShared(uid string) bool { return len(uid) == 36 && uid[14] == '8' }

// constantTag is what creates have in common that say the same.
func constantTag(content []byte, seq uint64) tag {
	h := fnv.New64a()
	_, _ = h.Write(content)
	return tag{dot: Dot{Origin: Origin(h.Sum64() | 1), Seq: seq}}
}

// constant reports whether the tag is no write of a node but what several
// creates have in common.
func (t tag) constant() bool { return t.stamp == 0 && !t.isZero() }

// bornShared returns the life that a create of an object with a shared UID
// begins. What is in the object is held by its content: equal creates can be
// joined field by field, of unequal ones one stays.
func bornShared(t tag, ch Change, value []byte) *life {
	l := born(t, ch.UID, ch.APIVersion, value)
	n := parseObject(value)
	if n == nil || !orderly(n) {
		return l
	}
	l.shared = true
	l.claims = &claims{whole: constantTag([]byte(ch.APIVersion+" "+n.get("kind").text()), 1), form: formFields}
	meta := objectMeta()
	for _, m := range n.members {
		c := &claims{}
		if m.name == "metadata" {
			c.add(added(m.node, meta), t)
			c.drop()
		} else {
			c.whole = constantTag(m.node.append(nil), 2)
		}
		if !c.nothing() {
			l.claims.kids = append(l.claims.kids, kid[*claims]{m.name, c})
		}
	}
	if c := l.claims.kid("metadata"); c != nil {
		c.kids = slices.DeleteFunc(c.kids, func(k kid[*claims]) bool { return k.name == "generation" })
	}
	return l
}

// same reports whether l and m are one life.
func (l *life) same(m *life) bool {
	if l.shared || m.shared {
		return l.shared && m.shared && l.uid == m.uid
	}
	return l.birth.dot == m.birth.dot
}

// end notes that the lives are over, but for the one that stays.
func (s *state) end(lives []*life, stays *life) {
	for _, l := range lives {
		if l != stays && l.shared && !slices.Contains(s.ended, l.uid) {
			s.ended = append(s.ended, l.uid)
		}
	}
	slices.Sort(s.ended)
}

// ends reports whether s knows that the life l, which it has not, is over.
func (s *state) ends(l *life) bool {
	if l.shared {
		return slices.Contains(s.ended, l.uid)
	}
	return s.seen.Covers(l.birth.dot)
}
