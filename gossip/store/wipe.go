package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// owed is what a replica included before a [Store.Wipe]. It may claim that
// again once it includes what the peer did then, covered, and has applied once
// more what the peer did not know: set aside.
type owed struct {
	covered crdt.Vector
	claims  crdt.Vector
	aside   []*crdt.Record
	next    int64 // number on disk of the next that is set aside
}

func (o *owed) encode() []byte {
	covered := o.covered.Append(nil)
	b := binary.AppendUvarint(nil, uint64(len(covered)))
	return lasting(o.claims).Append(append(b, covered...))
}

func readOwed(db *pebble.DB) (*owed, error) {
	b, err := getBytes(db, owedKey)
	if err != nil || b == nil {
		return nil, err
	}
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, fmt.Errorf("read what is owed: malformed")
	}
	b = b[size:]
	o := &owed{}
	if o.covered, err = crdt.DecodeVector(b[:n]); err != nil {
		return nil, fmt.Errorf("read what is owed: %w", err)
	}
	if o.claims, err = crdt.DecodeVector(b[n:]); err != nil {
		return nil, fmt.Errorf("read what is owed: %w", err)
	}
	return o, o.readAside(db)
}

func (o *owed) readAside(db *pebble.DB) (err error) {
	iter, err := db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{asidePrefix}, UpperBound: []byte{asidePrefix + 1},
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := iter.Close(); err == nil {
			err = e
		}
	}()
	for ok := iter.First(); ok; ok = iter.Next() {
		r, err := crdt.DecodeRecord(bytes.Clone(iter.Value()))
		if err != nil {
			return fmt.Errorf("read what is set aside: %w", err)
		}
		if len(iter.Key()) != 9 {
			return fmt.Errorf("read what is set aside: key %x is malformed", iter.Key())
		}
		o.aside = append(o.aside, r)
		o.next = int64(binary.BigEndian.Uint64(iter.Key()[1:])) + 1
	}
	return iter.Error()
}

// readReplica reads what the log says about replication.
func (l *loader) readReplica(db *pebble.DB) error {
	err := l.readClaims(db)
	if err != nil {
		return err
	}
	if l.owed, err = readOwed(db); err != nil {
		return err
	}
	if l.owed != nil {
		l.head.owed = l.owed.covered
	}
	if l.head.past, err = getVector(db, pastKey); err != nil {
		return err
	}
	l.head.forgotten, err = getVector(db, forgotKey)
	return err
}

// known returns the part of the claims that a replica which includes has may
// make again: of an origin all, when the changes of it that were taken out are
// back.
func (o *owed) known(has func(crdt.Origin) uint64) crdt.Vector {
	out := crdt.Vector{}
	for origin, seq := range o.claims {
		if has(origin) >= min(seq, o.covered[origin]) {
			out[origin] = seq
		}
	}
	return out
}

// Wipe takes everything replicated out of the store, so that it can be had anew
// from a peer whose vector covered is. What the peer does not know is set
// aside, and applied and claimed again as soon as the replica includes covered;
// with covered nil it is lost. The store goes on as a new incarnation. Watchers
// end with [ErrCompacted], and the past is compacted.
func (s *Store) Wipe(ctx context.Context, covered crdt.Vector) error {
	return s.submit(ctx, &request{do: func(c *committer, b *batch) error { return c.wipe(b, covered) }})
}

func (c *committer) wipe(b *batch, covered crdt.Vector) error {
	before := c.head.claims.vector()
	c.renew(b)
	var gone, kept []*item
	c.head.items.Ascend(func(it *item) bool {
		if classOf(it.key).replicated {
			gone = append(gone, it)
		} else {
			kept = append(kept, it)
		}
		return true
	})
	c.owe(b, before, covered)
	clear(c.holders)
	c.must(c.disk(b).DeleteRange([]byte{holderPrefix}, []byte{holderPrefix + 1}, nil))
	for _, it := range gone {
		orphan := classOf(it.key).holders && !before.Covers(it.newest().dot) // it may be deleted and forgotten
		if c.owed != nil && !orphan && !covered.Includes(c.included(it)) {
			c.setAside(b, c.held(it.key, it.newest()))
		}
		if v := it.newest(); v.lease != 0 {
			c.store.lessor.detach(v.lease, it.key)
		}
		c.head.remove(it)
		c.dropVersions(b, it.versions)
	}
	c.forgetHistory(b, kept)
	c.head.past = before
	c.must(c.disk(b).Set(pastKey, lasting(before).Append(nil), nil))
	// What was forgotten here may come back from the peer, which never saw it
	// deleted. To refuse the peer for lacking it would last for ever.
	c.head.forgotten = nil
	c.must(c.disk(b).Delete(forgotKey, nil))
	c.head.claims.others = crdt.Vector{}
	clear(c.unsaved)
	c.must(c.disk(b).DeleteRange([]byte{claimPrefix}, []byte{claimPrefix + 1}, nil))
	b.logged, b.reset = true, true
	if c.owed != nil { // once: only what is included leaves
		c.head.beyond = c.head.beyond.Clone()
		c.owed.addBeyond(&c.head.view, c.head.beyond)
	}
	_, err := c.settleOwed(b) // of a peer that has nothing
	c.updateBeyond(nil)
	return err
}

// included returns the changes that a replica must include to have the state
// of a key.
func (c *committer) included(it *item) crdt.Vector {
	v := it.newest()
	if v.joined {
		return c.held(it.key, v).Seen()
	}
	return crdt.Vector{v.dot.Origin: v.dot.Seq}
}

// dropVersions takes versions off the disk together with the batch.
func (c *committer) dropVersions(b *batch, versions []version) {
	for i := range versions {
		if versions[i].rec == nil {
			c.must(c.disk(b).Delete(numberKey(logPrefix, versions[i].rev), nil))
			c.tally.records--
		}
	}
}

// forgetHistory moves the floor to a revision of its own, behind which there is
// nothing but the newest versions of the kept items.
func (c *committer) forgetHistory(b *batch, kept []*item) {
	c.rev = c.rev.Next(c.now, c.node)
	h := &c.head
	h.rev, h.floor = int64(c.rev), int64(c.rev)
	h.history, h.marks, h.historyBytes, h.historyMemory = nil, nil, 0, 0
	c.settled = true
	c.events = eviction{limit: c.events.limit}
	for _, it := range kept {
		last := len(it.versions) - 1
		c.dropVersions(b, it.versions[:last])
		v := it.versions[last]
		cls := classOf(it.key)
		if v.deleted && !cls.replicated {
			c.dropVersions(b, it.versions[last:])
			h.items.Delete(it)
			continue
		}
		h.items.ReplaceOrInsert(&item{key: it.key, versions: []version{v}})
		if cls.evicted {
			c.events.noteChange(&v, nil, it.key)
		}
	}
	c.must(c.disk(b).Set(floorKey, encodeNumber(h.floor), nil))
}

// owe notes what may be claimed again later.
func (c *committer) owe(b *batch, before, covered crdt.Vector) {
	if covered == nil {
		c.dropOwed(b)
		return
	}
	next := &owed{covered: lasting(covered), claims: before.Clone()}
	for o := range covered {
		if isVolatile(o) {
			delete(next.claims, o) // a restart of the peer may lose it
		}
	}
	if c.owed != nil {
		next.covered.Join(c.owed.covered)
		next.claims.Join(c.owed.claims)
		next.aside, next.next = c.owed.aside, c.owed.next
	}
	c.owed, c.head.owed = next, next.covered
	c.must(c.disk(b).Set(owedKey, next.encode(), nil))
}

// setAside keeps a record for later.
func (c *committer) setAside(b *batch, r *crdt.Record) {
	o := c.owed
	if cls := classOf(r.Key); cls.durable || cls.holders {
		c.must(c.disk(b).Set(numberKey(asidePrefix, o.next), crdt.AppendRecord(nil, r), nil))
		o.next++
	}
	o.aside = append(o.aside, r)
}

// settleOwed applies what was set aside and claims again what was claimed
// before a wipe, once what was taken out is back. It returns what lost.
func (c *committer) settleOwed(b *batch) ([]crdt.Conflict, error) {
	if c.owed == nil || !c.head.claims.includes(c.owed.covered) {
		return nil, nil
	}
	return c.applyAside(b, c.owed.claims)
}

// applyAside applies what was set aside and makes claims again.
func (c *committer) applyAside(b *batch, claims crdt.Vector) ([]crdt.Conflict, error) {
	var lost []crdt.Conflict
	for _, r := range c.owed.aside {
		conflicts, err := c.applyOne(b, r)
		if err != nil {
			return nil, err
		}
		lost = append(lost, conflicts...)
	}
	c.claim(claims)
	c.dropOwed(b)
	return lost, nil
}

// Owed returns what a peer must include for this replica to be filled from it
// after a [Store.Wipe], nil for a replica that is whole. It is not to be changed.
func (s *Store) Owed() crdt.Vector { return s.view.Load().owed }

// GiveUpOwed ends the wait for what was wiped, as no peer is left that has it:
// what was set aside is applied to what is here.
func (s *Store) GiveUpOwed(ctx context.Context) error {
	return s.submit(ctx, &request{do: (*committer).giveUpOwed})
}

func (c *committer) giveUpOwed(b *batch) error {
	if c.owed == nil {
		return nil
	}
	lost, err := c.applyAside(b, c.owed.known(c.head.claims.upTo))
	c.updateBeyond(nil)
	c.keepConflicts(b, lost)
	return err
}

func (c *committer) dropOwed(b *batch) {
	c.owed, c.head.owed = nil, nil
	c.must(c.disk(b).Delete(owedKey, nil))
	c.must(c.disk(b).DeleteRange([]byte{asidePrefix}, []byte{asidePrefix + 1}, nil))
}
