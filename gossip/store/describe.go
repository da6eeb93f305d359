package store

import (
	"bytes"

	"github.com/mootkube/moot/gossip/crdt"
)

// prepared is what the caller of a put has worked out ahead of its turn: which
// fields the put changes. It holds as long as the version it was compared with
// is still the newest.
type prepared struct {
	ready  bool
	rev    int64        // of that version, 0 when the key was unknown
	held   *crdt.Record // that version, nil when the key was unknown
	change crdt.Change
}

// prepare describes what the operations of a transaction will do, so that the
// committer need not. It reads and decodes, in the caller's goroutine, and
// skips what cannot come to pass as things stand.
func (s *Store) prepare(t *Txn) []prepared {
	var all []prepared
	v := s.view.Load()
	for branch, ops := range [2][]Op{t.Then, t.Else} {
		for i := range ops {
			op := &ops[i]
			if op.Kind == OpRange || len(op.End) > 0 || op.IgnoreValue {
				continue
			}
			if cls := classOf(op.Key); !cls.replicated || !cls.durable {
				continue
			}
			p, ok := s.prepareOp(v, t, op, branch == 0)
			if !ok {
				continue
			}
			if all == nil {
				all = make([]prepared, len(t.Then)+len(t.Else))
			}
			all[branch*len(t.Then)+i] = p
		}
	}
	return all
}

func (s *Store) prepareOp(v *view, t *Txn, op *Op, then bool) (p prepared, ok bool) {
	var last *version
	if it, found := v.items.Get(&item{key: op.Key}); found {
		last = it.newest()
	}
	if then && t.refuted(op.Key, last) {
		return prepared{}, false
	}
	if last != nil {
		r, err := s.record(last)
		if err != nil {
			return prepared{}, false // the committer finds out why
		}
		p.rev, p.held = last.rev, r
	}
	if op.Kind == OpPut {
		p.change = crdt.DescribeChange(p.value(), op.Value, s.cfg.Schema)
	}
	p.ready = true
	return p, true
}

// fits reports whether last is the version that p was prepared for.
func (p *prepared) fits(last *version) bool {
	if p == nil || !p.ready {
		return false
	}
	return last == nil && p.rev == 0 || last != nil && last.rev == p.rev
}

// value returns what the key held.
func (p *prepared) value() []byte {
	if p.held == nil {
		return nil
	}
	return p.held.Value
}

// refuted reports whether a guard on the revision of key cannot hold with last
// as its newest version.
func (t *Txn) refuted(key []byte, last *version) bool {
	var rev int64
	if last != nil && !last.deleted {
		rev = last.rev
	}
	for i := range t.If {
		g := &t.If[i]
		if g.Target == TargetMod && g.Relation == Equal && g.Int != rev && len(g.End) == 0 && string(g.Key) == string(key) {
			return true
		}
	}
	return false
}

// describe returns the record that a put replaces, nil for none, and what the
// put changes. P may be nil.
func (c *committer) describe(op *Op, last *version, p *prepared) (*crdt.Record, crdt.Change) {
	cls := classOf(op.Key)
	if !cls.replicated {
		return nil, crdt.Change{}
	}
	if p.fits(last) {
		return p.held, p.change
	}
	now := prepared{held: c.held(op.Key, last)}
	if !cls.durable {
		return now.held, quickChange(op.Value)
	}
	return now.held, crdt.DescribeChange(now.value(), op.Value, c.store.cfg.Schema)
}

// held returns the record of the newest version of a key, nil for none. One
// that cannot be read any more counts as a delete by the same change, so that
// the key can still be written.
func (c *committer) held(key []byte, last *version) *crdt.Record {
	if last == nil {
		return nil
	}
	r, err := c.store.record(last)
	if err != nil {
		c.store.cfg.Log.Error("what a write replaces cannot be read", "key", string(key), "err", err)
		return &crdt.Record{Key: key, Deleted: true, Dot: last.dot, Stamp: max(last.born, 1)}
	}
	return r
}

// quickChange describes a put of what is renewed all the time, which merges
// whole: two holders' fields of one Lease make no sense together.
func quickChange(value []byte) crdt.Change {
	return crdt.Change{UID: quickText(value, `"uid":"`), APIVersion: quickText(value, `"apiVersion":"`)}
}

// quickText returns the string after the first occurrence of name in an object
// in JSON. Kubernetes writes the UID and the version of the object itself
// before any other.
func quickText(value []byte, name string) string {
	i := bytes.Index(value, []byte(name))
	if i < 0 {
		return ""
	}
	text := value[i+len(name):]
	end := bytes.IndexByte(text, '"')
	if end < 0 || end > maxText {
		return ""
	}
	return string(text[:end])
}

// maxText bounds what is taken for a UID or a version.
const maxText = 256
