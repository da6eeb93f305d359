package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/mootkube/moot/gossip/crdt"
)

// Txn evaluates the guards of t against the newest state and applies one of
// its branches. It returns once the outcome is durable and visible. The store
// keeps the slices of t; they must not change any more.
//
// When ctx ends first, or the error is none of this package's, the
// transaction may or may not have happened.
func (s *Store) Txn(ctx context.Context, t Txn) (TxnResult, error) {
	if err := s.checkTxn(&t); err != nil {
		return TxnResult{}, err
	}
	if t.readOnly() {
		return s.readTxn(&t)
	}
	r := &request{txn: &t, prepared: s.prepare(&t)}
	if err := s.submit(ctx, r); err != nil {
		return TxnResult{}, err
	}
	return r.res, nil
}

func (t *Txn) readOnly() bool {
	for _, ops := range [][]Op{t.Then, t.Else} {
		for i := range ops {
			if ops[i].Kind != OpRange {
				return false
			}
		}
	}
	return true
}

// checkTxn refuses what no state of the store could make right.
func (s *Store) checkTxn(t *Txn) error {
	size := 0
	for i := range t.If {
		c := &t.If[i]
		if len(c.Key) == 0 {
			return errors.New("check transaction: a compare has no key")
		}
		size += len(c.Key) + len(c.End) + len(c.Value)
	}
	for _, ops := range [][]Op{t.Then, t.Else} {
		for i := range ops {
			op := &ops[i]
			key := op.Key
			if op.Kind == OpRange {
				key = op.Range.Key
			}
			if len(key) == 0 {
				return errors.New("check transaction: an operation has no key")
			}
			if len(key) > crdt.MaxKeyBytes {
				return ErrTooLarge
			}
			size += len(key) + len(op.End) + len(op.Value)
		}
		if err := checkDuplicates(ops); err != nil {
			return err
		}
	}
	if size > s.cfg.MaxRequestBytes {
		return ErrTooLarge
	}
	return nil
}

// checkDuplicates refuses to change one key twice: put it twice, or put it and
// delete it.
func checkDuplicates(ops []Op) error {
	if len(ops) < 2 {
		return nil
	}
	puts := make(map[string]struct{}, len(ops))
	for i := range ops {
		if ops[i].Kind != OpPut {
			continue
		}
		if _, ok := puts[string(ops[i].Key)]; ok {
			return ErrDuplicateKey
		}
		puts[string(ops[i].Key)] = struct{}{}
	}
	for i := range ops {
		if ops[i].Kind != OpDelete {
			continue
		}
		for k := range puts {
			if inRange([]byte(k), ops[i].Key, ops[i].End) {
				return ErrDuplicateKey
			}
		}
	}
	return nil
}

// readTxn evaluates a transaction that writes nothing.
func (s *Store) readTxn(t *Txn) (TxnResult, error) {
	v, release, err := s.pinned(0)
	if err != nil {
		return TxnResult{}, err
	}
	defer release()
	ok, err := s.compare(v, t.If)
	if err != nil {
		return TxnResult{}, err
	}
	res := TxnResult{Revision: v.rev, Succeeded: ok}
	for _, op := range t.branch(ok) {
		r, err := s.rangeView(v, op.Range)
		if err != nil {
			return TxnResult{}, err
		}
		res.Results = append(res.Results, OpResult{Kind: OpRange, Range: r})
	}
	return res, nil
}

func (t *Txn) branch(ok bool) []Op {
	if ok {
		return t.Then
	}
	return t.Else
}

// compare reports whether all guards hold.
func (s *Store) compare(v *view, guards []Compare) (bool, error) {
	for i := range guards {
		g := &guards[i]
		found, holds := false, true
		var failed error
		v.scan(g.Key, g.End, v.rev, func(_ *item, ver *version) bool {
			found = true
			holds, failed = s.compareOne(g, ver)
			return holds && failed == nil
		})
		if failed != nil {
			return false, failed
		}
		if !found {
			holds = g.Target != TargetValue && related(g.Relation, cmp.Compare(0, g.Int))
		}
		if !holds {
			return false, nil
		}
	}
	return true, nil
}

func (s *Store) compareOne(g *Compare, v *version) (bool, error) {
	var n int64
	switch g.Target {
	case TargetVersion:
		n = v.version
	case TargetCreate:
		n = v.create
	case TargetMod:
		n = v.rev
	case TargetLease:
		n = v.lease
	case TargetValue:
		r, err := s.record(v)
		if err != nil {
			return false, err
		}
		return related(g.Relation, bytes.Compare(r.Value, g.Value)), nil
	default:
		return false, fmt.Errorf("compare: unknown target %d", g.Target)
	}
	return related(g.Relation, cmp.Compare(n, g.Int)), nil
}

// related reports whether an order, as cmp.Compare gives it, satisfies the
// relation.
func related(r Relation, order int) bool {
	switch r {
	case Equal:
		return order == 0
	case Greater:
		return order > 0
	case Less:
		return order < 0
	default:
		return order != 0
	}
}

// txn evaluates a transaction at the head. Either all of it is added to the
// batch or, with an error from the checks, none.
func (c *committer) txn(b *batch, r *request) (TxnResult, error) {
	s, t := c.store, r.txn
	ok, err := s.compare(&c.head.view, t.If)
	if err != nil {
		return TxnResult{}, err
	}
	ops, err := c.checkBranch(t.branch(ok))
	if err != nil {
		return TxnResult{}, err
	}
	res := TxnResult{Succeeded: ok}
	if len(ops) > 0 {
		res.Results = make([]OpResult, len(ops))
	}
	first := 0 // of the branch in what is prepared
	if !ok {
		first = len(t.Then)
	}
	for i := range ops {
		var p *prepared
		if r.prepared != nil {
			p = &r.prepared[first+i]
		}
		// An error past the checks is one of reading: the change stands.
		err = errors.Join(err, c.apply(b, &ops[i], p, &res.Results[i]))
	}
	res.Revision = c.head.rev
	return res, err
}

// checkBranch refuses what the present state does not allow. It returns the
// operations with present values and leases filled in where they are kept.
func (c *committer) checkBranch(ops []Op) ([]Op, error) {
	copied := false
	var puts, deletes bool // on disk
	for i := range ops {
		op := &ops[i]
		switch op.Kind {
		case OpRange:
			if rev := op.Range.Revision; rev > 0 {
				if err := c.head.checkRevision(op.Range.Key, op.Range.End, rev); err != nil {
					return nil, err
				}
			}
			continue
		case OpDelete:
			deletes = deletes || len(op.End) > 0 || classOf(op.Key).durable
			continue
		case OpPut:
			puts = puts || classOf(op.Key).durable
		}
		if op.IgnoreValue || op.IgnoreLease {
			if !copied {
				ops, copied = append([]Op(nil), ops...), true
				op = &ops[i]
			}
			if err := c.keepPresent(op); err != nil {
				return nil, err
			}
		}
		if op.Lease != 0 && !c.store.lessor.alive(op.Lease) {
			return nil, ErrLeaseNotFound
		}
	}
	if err := c.checkSpace(puts, deletes); err != nil {
		return nil, err
	}
	return ops, nil
}

// checkSpace refuses what the disk has no room for. Deletes may use more of the
// reserve than puts: they are the way out.
func (c *committer) checkSpace(puts, deletes bool) error {
	if puts {
		return c.space()
	}
	if deletes && !c.store.space.spare() {
		return ErrNoSpace
	}
	return nil
}

// keepPresent fills in the value or the lease that a put keeps.
func (c *committer) keepPresent(op *Op) error {
	alive, _ := c.head.get(op.Key)
	if alive == nil {
		return ErrKeyNotFound
	}
	if op.IgnoreLease {
		op.Lease = alive.lease
	}
	if op.IgnoreValue {
		r, err := c.store.record(alive)
		if err != nil {
			return err
		}
		op.Value = r.Value
	}
	return nil
}

func (c *committer) apply(b *batch, op *Op, p *prepared, res *OpResult) error {
	res.Kind = op.Kind
	switch op.Kind {
	case OpRange:
		r, err := c.store.rangeView(&c.head.view, op.Range)
		res.Range = r
		return err
	case OpPut:
		alive, last := c.head.get(op.Key)
		var err error
		if op.PrevKV && alive != nil {
			res.Prev, err = c.prev(op.Key, alive)
		}
		held, change := c.describe(op, last, p)
		c.put(b, op, last, held, change)
		return err
	case OpDelete:
		return c.applyDelete(b, op, p, res)
	}
	return fmt.Errorf("apply: unknown operation %d", op.Kind)
}

func (c *committer) applyDelete(b *batch, op *Op, p *prepared, res *OpResult) error {
	type found struct {
		key []byte
		ver *version
	}
	var all []found
	c.head.scan(op.Key, op.End, c.head.rev, func(it *item, v *version) bool {
		all = append(all, found{it.key, v})
		return true
	})
	var err error
	for _, f := range all {
		if op.PrevKV {
			prev, readErr := c.prev(f.key, f.ver)
			res.Prev = append(res.Prev, prev...)
			err = errors.Join(err, readErr)
		}
		var held *crdt.Record
		if p.fits(f.ver) {
			held = p.held
		}
		c.delete(b, f.key, f.ver, held)
		res.Deleted++
	}
	return err
}

func (c *committer) prev(key []byte, v *version) ([]KeyValue, error) {
	kv, err := c.store.keyValue(key, v, false)
	if err != nil {
		return nil, err
	}
	return []KeyValue{kv}, nil
}
