package crdt

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Rules by which a conflict was decided, as they stand in [Conflict.Rule].
const (
	RuleNewest  = "newest"  // both sides changed the place: the newer write stays
	RuleWhole   = "whole"   // what is around the place was replaced or removed on the other side
	RuleOldest  = "oldest"  // both sides created the object: the older one stays
	RuleDeleted = "deleted" // the object was deleted on the other side
)

// maxLostPlaces bounds how many places below one that was replaced are listed
// one by one. Beyond, the whole of it is listed once.
const maxLostPlaces = 16

// Conflict says what one join of concurrent changes did not keep. Its JSON
// form is the same on every replica that finds it.
type Conflict struct {
	Key    string          `json:"key"`
	UID    string          `json:"uid,omitempty"`  // of the object that lost
	Path   string          `json:"path,omitempty"` // empty for the whole object
	Rule   string          `json:"rule"`
	Lost   json.RawMessage `json:"lost,omitempty"` // absent: a removal lost
	Kept   json.RawMessage `json:"kept,omitempty"` // absent: a removal stays
	LostBy Dot             `json:"lostBy,omitzero"`
	KeptBy Dot             `json:"keptBy,omitzero"`
	LostAt Stamp           `json:"lostAt,omitempty"`
	KeptAt Stamp           `json:"keptAt,omitempty"`
}

// Observed reports whether what was lost is only what controllers observe and
// will observe again: a status, or which pods a Service has. Addresses without
// pods behind them were written by people.
func (c *Conflict) Observed() bool {
	if at, ok := strings.CutPrefix(c.Path, ".status"); ok {
		return at == "" || at[0] == '.' || at[0] == '['
	}
	switch {
	case c.Path == `.metadata.annotations["endpoints.kubernetes.io/last-change-trigger-time"]`:
		return true
	case strings.HasPrefix(c.Key, "/registry/endpointslices/"), strings.HasPrefix(c.Key, "/registry/services/endpoints/"):
		return c.Path != "" && (bytes.Contains(c.Lost, targetRef) || bytes.Contains(c.Kept, targetRef))
	}
	return false
}

// targetRef leads from an address to its pod.
var targetRef = []byte(`"targetRef":`)

// MarshalText writes d as origin.seq.
func (d Dot) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Dot) UnmarshalText(text []byte) error {
	origin, seq, ok := strings.Cut(string(text), ".")
	o, err := strconv.ParseUint(origin, 16, 64)
	n, seqErr := strconv.ParseUint(seq, 10, 64)
	if !ok || err != nil || seqErr != nil {
		return fmt.Errorf("parse dot %.60q: want origin.sequence", text)
	}
	*d = Dot{Origin: Origin(o), Seq: n}
	return d.valid()
}

// sorted returns the conflicts in an order of their own.
func (j *joiner) sorted() []Conflict {
	slices.SortStableFunc(j.conflicts, func(a, b Conflict) int {
		if c := strings.Compare(a.UID, b.UID); c != 0 {
			return c
		}
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(string(a.Lost), string(b.Lost))
	})
	return j.conflicts
}

// lost notes what of the losing side's news at the place is not kept. seen is
// what the winner included, so all that is not in it is news.
func (j *joiner) lost(lc *claims, lv *node, seen Vector, wc *claims, wv *node) {
	if lv.equal(wv) || isBookkeeping(j.at) {
		return
	}
	by := cmp.Or(wc.wrote(), newest(wc, nil))
	if news := lc.wrote(); !news.isZero() && (news.constant() || !news.knownTo(seen)) {
		j.note(j.at, RuleNewest, lv, wv, news, by)
		return
	}
	var places []Conflict
	before := len(j.conflicts)
	j.lostBelow(lc, lv, seen, wv, by)
	places = j.conflicts[before:]
	if len(places) > maxLostPlaces {
		j.conflicts = j.conflicts[:before]
		j.note(j.at, RuleWhole, lv, wv, newest(lc, seen), by)
	}
}

// knownTo reports whether a write was seen; what creates have in common always
// was.
func (t tag) knownTo(seen Vector) bool { return seen != nil && (t.constant() || seen.Covers(t.dot)) }

// newest returns the newest tag in the tree that is not in seen.
func newest(c *claims, seen Vector) tag {
	var t tag
	if c != nil {
		c.each(func(held *tag) {
			if held.compare(t) > 0 && !held.knownTo(seen) {
				t = *held
			}
		})
	}
	return t
}

// lostBelow notes the places below at which the loser has news.
func (j *joiner) lostBelow(lc *claims, lv *node, seen Vector, wv *node, by tag) {
	if lc == nil || lv.equal(wv) || isBookkeeping(j.at) {
		return
	}
	if !lc.whole.isZero() && !lc.whole.knownTo(seen) {
		j.note(j.at, RuleWhole, lv, wv, lc.whole, by)
		return
	}
	for _, k := range lc.kids {
		j.at = append(j.at, step{lc.form, k.name})
		j.lostBelow(k.at, child(lv, lc.form, k.name), seen, child(wv, lc.form, k.name), by)
		j.at = j.at[:len(j.at)-1]
	}
}

// child returns the child of n by name.
func child(n *node, form, name string) *node {
	if form == formFields {
		return n.get(name)
	}
	names, ok := itemNames(n, form)
	if i := slices.Index(names, name); ok && i >= 0 {
		return n.items[i]
	}
	return nil
}

func (j *joiner) note(at []step, rule string, lost, kept *node, lostBy, keptBy tag) {
	c := Conflict{Key: j.key, UID: j.uid, Path: pathString(at), Rule: rule}
	if !lostBy.constant() {
		c.LostBy, c.LostAt = lostBy.dot, lostBy.stamp
	}
	if !keptBy.constant() {
		c.KeptBy, c.KeptAt = keptBy.dot, keptBy.stamp
	}
	if lost != nil {
		c.Lost = lost.append(nil)
	}
	if kept != nil {
		c.Kept = kept.append(nil)
	}
	j.conflicts = append(j.conflicts, c)
}

// opaque notes the loss of a value that is no object.
func (j *joiner) opaque(lose, win *life) {
	by, kept := newest(lose.claims, nil), newest(win.claims, nil)
	j.conflicts = append(j.conflicts, Conflict{
		Key: j.key, UID: j.uid, Rule: RuleNewest, Lost: rawJSON(lose.value), Kept: rawJSON(win.value),
		LostBy: by.dot, KeptBy: kept.dot, LostAt: by.stamp, KeptAt: kept.stamp,
	})
}

// hidden notes the younger of two objects of one name.
func (j *joiner) hidden(l, kept *life) {
	by, older := newest(l.claims, nil), newest(kept.claims, nil)
	j.conflicts = append(j.conflicts, Conflict{
		Key: j.key, UID: l.uid, Rule: RuleOldest, Lost: rawJSON(l.value), Kept: rawJSON(kept.value),
		LostBy: by.dot, KeptBy: older.dot, LostAt: by.stamp, KeptAt: older.stamp,
	})
}

// died notes a life that the side that saw seen ended, if more about it was
// changed, without that side's knowledge, than goes with its end.
func (j *joiner) died(l *life, seen Vector) {
	by := newest(l.claims, seen)
	if by.isZero() || l.onlyIn(withDeletion, seen) {
		return
	}
	c := Conflict{Key: j.key, UID: l.uid, Rule: RuleDeleted, Lost: rawJSON(l.value), LostBy: by.dot, LostAt: by.stamp}
	if l.onlyIn(withStatus, seen) {
		c.Path = ".status"
		c.Lost = nil
		if s := parseObject(l.value).get("status"); s != nil {
			c.Lost = s.append(nil)
		}
	}
	j.conflicts = append(j.conflicts, c)
}

// Places that go along when a deletion is written, and when a status is, see
// [groupsOf].
var (
	withDeletion = []string{"metadata.deletionTimestamp", "metadata.deletionGracePeriodSeconds", "metadata.finalizers",
		"metadata.managedFields", "spec.finalizers"}
	withStatus = append([]string{"status", "spec.nodeName", "spec.volumeName", "spec.claimRef"}, withDeletion...)
)

// onlyIn reports whether all in the life that is not in seen is in the places.
func (l *life) onlyIn(places []string, seen Vector) bool {
	if !l.claims.whole.knownTo(seen) || l.claims.form != formFields {
		return newest(l.claims, seen).isZero()
	}
	for _, k := range l.claims.kids {
		if newest(k.at, seen).isZero() || slices.Contains(places, k.name) {
			continue
		}
		if !k.at.whole.isZero() && !k.at.whole.knownTo(seen) {
			return false
		}
		for _, m := range k.at.kids {
			if !newest(m.at, seen).isZero() && !slices.Contains(places, k.name+"."+m.name) {
				return false
			}
		}
	}
	return true
}

// finished notes a life that came to its end in the join, as two that died.
func (j *joiner) finished(l, onA, onB *life) {
	if onA == nil || onB == nil || !l.finished() {
		return
	}
	j.died(onA, j.b.seen)
	j.died(onB, j.a.seen)
}

// rawJSON returns a value as it can stand in JSON: itself, or a string.
func rawJSON(v []byte) json.RawMessage {
	if n := parse(v); n != nil {
		return n.append(nil)
	}
	return appendString(nil, string(v))
}

// pathString writes a place as .spec.containers[name="web"].image.
func pathString(at []step) string {
	var b strings.Builder
	for _, s := range at {
		switch {
		case s.form == formFields && plainName(s.name):
			b.WriteString("." + s.name)
		case s.form == formFields:
			b.WriteString("[" + string(appendString(nil, s.name)) + "]")
		case s.form == formSet:
			b.WriteString("[=" + s.name + "]")
		default:
			b.WriteString("[" + itemString(s.form, s.name) + "]")
		}
	}
	return b.String()
}

func itemString(form, name string) string {
	values := parse([]byte(name))
	keys := keyedBy(form)
	if values == nil || values.kind != list || len(values.items) != len(keys) {
		return name
	}
	parts := make([]string, 0, len(keys))
	for i, v := range values.items {
		if v.kind == scalar && string(v.raw) != "null" {
			parts = append(parts, keys[i]+"="+string(v.raw))
		}
	}
	return strings.Join(parts, ",")
}

func plainName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' {
			return false
		}
	}
	return s != ""
}
