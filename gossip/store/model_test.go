package store

import (
	"bytes"
	"cmp"
	"slices"
)

// model is the store as one would write it with no care for time or space: the
// list of all changes.
type model struct {
	changes []modelChange
	floor   int64 // compacted to
	boot    int64 // volatile keys have no past before it
}

type modelChange struct {
	kv      KeyValue
	deleted bool
	prev    *KeyValue
}

// at returns the keys of a range at a revision, in order.
func (m *model) at(key, end []byte, rev int64) []KeyValue {
	state := map[string]KeyValue{}
	for _, c := range m.changes {
		if c.kv.ModRevision > rev {
			break
		}
		if c.deleted {
			delete(state, string(c.kv.Key))
		} else {
			state[string(c.kv.Key)] = c.kv
		}
	}
	var kvs []KeyValue
	for _, kv := range state {
		if inModelRange(kv.Key, key, end) {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

func inModelRange(k, key, end []byte) bool {
	switch {
	case len(end) == 0:
		return string(k) == string(key)
	case string(end) == "\x00":
		return string(k) >= string(key)
	default:
		return string(k) >= string(key) && string(k) < string(end)
	}
}

const newest = int64(1) << 62

func (m *model) compare(c Compare) bool {
	kvs := m.at(c.Key, c.End, newest)
	if len(kvs) == 0 {
		return c.Target != TargetValue && modelRelated(c.Relation, cmp.Compare(0, c.Int))
	}
	for _, kv := range kvs {
		var order int
		switch c.Target {
		case TargetVersion:
			order = cmp.Compare(kv.Version, c.Int)
		case TargetCreate:
			order = cmp.Compare(kv.CreateRevision, c.Int)
		case TargetMod:
			order = cmp.Compare(kv.ModRevision, c.Int)
		case TargetLease:
			order = cmp.Compare(kv.Lease, c.Int)
		case TargetValue:
			order = cmp.Compare(string(kv.Value), string(c.Value))
		}
		if !modelRelated(c.Relation, order) {
			return false
		}
	}
	return true
}

func modelRelated(r Relation, order int) bool {
	return map[Relation]bool{Equal: order == 0, NotEqual: order != 0, Less: order < 0, Greater: order > 0}[r]
}

// put adds a put whose revision is not known yet; deletes likewise. Revisions
// are provisional, above all real ones, until the store has said which.
func (m *model) put(key, value []byte, lease int64) {
	c := modelChange{kv: KeyValue{Key: key, Value: value, Lease: lease, Version: 1}}
	c.kv.ModRevision = newest - 1<<20 + int64(len(m.changes))
	c.kv.CreateRevision = c.kv.ModRevision
	if old := m.at(key, nil, newest); len(old) > 0 {
		c.kv.Version, c.kv.CreateRevision, c.prev = old[0].Version+1, old[0].CreateRevision, &old[0]
	}
	m.changes = append(m.changes, c)
}

func (m *model) delete(key []byte) {
	old := m.at(key, nil, newest)
	m.changes = append(m.changes, modelChange{deleted: true, prev: &old[0],
		kv: KeyValue{Key: key, ModRevision: newest - 1<<20 + int64(len(m.changes))}})
}

// number gives the i-th change its real revision.
func (m *model) number(i int, rev int64) {
	was := m.changes[i].kv.ModRevision
	for j := i; j < len(m.changes); j++ {
		c := &m.changes[j]
		if c.kv.CreateRevision == was {
			c.kv.CreateRevision = rev
		}
		if c.prev != nil {
			p := *c.prev
			if p.CreateRevision == was {
				p.CreateRevision = rev
			}
			if p.ModRevision == was {
				p.ModRevision = rev
			}
			c.prev = &p
		}
	}
	m.changes[i].kv.ModRevision = rev
}

// restart forgets what a restart does.
func (m *model) restart(boot int64) {
	m.boot = boot
	m.changes = slices.DeleteFunc(m.changes, func(c modelChange) bool { return !classOf(c.kv.Key).durable })
}
