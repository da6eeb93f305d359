package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// request is one write on its way through the committer: a transaction, or
// something of the store's own.
type request struct {
	txn      *Txn
	prepared []prepared // for the operations of Then, and of Else after them; may be nil
	do       func(*committer, *batch) error

	res  TxnResult
	err  error
	hold bool          // it changed what peers should have before it is answered
	done chan struct{} // closed when the outcome is durable and visible
}

// batch is what is committed together.
type batch struct {
	reqs    []*request
	changes []*change
	bytes   int
	disk    *pebble.Batch // nil while nothing goes to disk
	bulk    *bulk         // the changes that do not go through it, nil for none
	logged  bool          // changes go to disk
	upTo    int64         // the newest of those
	reset   bool          // the past is gone: watchers end
	view    *view
}

// submit queues r and waits for its outcome. When ctx ends first the write may
// still happen.
func (s *Store) submit(ctx context.Context, r *request) error {
	r.done = make(chan struct{})
	select {
	case s.queue <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.failure:
		return s.failErr
	case <-s.stop:
		return ErrClosed
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.failure:
		return s.failErr
	case <-s.stopped:
	case <-s.stop:
		if s.running.Load() {
			<-s.stopped
		}
	}
	select {
	case <-r.done:
		return r.err
	default:
		return ErrClosed
	}
}

// committer evaluates writes in order. Its fields belong to the goroutine that
// runs it.
type committer struct {
	store *Store
	head  head

	node     crdt.NodeNumber
	rev      crdt.Revision // last issued
	seq      uint64        // last issued to a durable change
	memSeq   uint64        // last issued to a change kept in memory only
	clock    crdt.Clock
	reserved ceiling
	tally    tally
	now      time.Time                // when the present batch began
	request  *request                 // being evaluated
	unsaved  map[crdt.Origin]struct{} // whose claims have grown in the present batch
	holders  map[string]struct{}      // keys of Leases whose holder, or tombstone, is on disk
	orphans  crdt.Vector              // see holder.go
	owed     *owed                    // claims that wait for what was wiped

	bulks    int   // tables made
	inFlight *bulk // the last of them, until it is in the log

	doubt   bool         // the disk may be an older one, see Config.RunFile
	space   func() error // the disk has room, asked once per batch
	events  eviction
	graves  graves
	garbage []int64 // revisions in the log that nobody needs
	settled bool    // the history has been trimmed to the floor
	stale   bool    // tombstones went since the last view
	scratch []byte
}

func newCommitter(s *Store, ld *loader, reserved ceiling) *committer {
	return &committer{
		store:    s,
		head:     ld.head,
		node:     s.cfg.Node,
		unsaved:  make(map[crdt.Origin]struct{}),
		holders:  make(map[string]struct{}),
		orphans:  crdt.Vector{},
		owed:     ld.owed,
		graves:   ld.graves,
		rev:      crdt.Revision(ld.head.rev),
		seq:      reserved.seq,
		clock:    ld.clock,
		reserved: reserved,
		tally:    ld.tally,
		events:   eviction{limit: s.cfg.EventBytes},
		settled:  true,
	}
}

// begin takes up what the disk has of Leases, reserves what the first revision
// needs and clears up after a compaction that was cut short.
func (c *committer) begin(held []*crdt.Record, garbage []version) error {
	now := c.store.cfg.Now()
	b := c.store.db.NewBatch()
	c.recoverHolders(b, held, now)
	c.reserved = c.reserved.raise(c.rev, c.seq, now, c.store.cfg.RevisionReserve)
	c.must(b.Set(ceilingKey, encodeCeiling(c.reserved), nil))
	if !c.doubt {
		c.vouch(b)
	}
	if err := errors.Join(b.Commit(pebble.Sync), b.Close()); err != nil {
		return fmt.Errorf("reserve revisions: %w", err)
	}
	c.collect(garbage)
	return c.sweep()
}

// release gives back what was reserved and not used. The committer must not be
// used after.
func (c *committer) release() error {
	rev := max(c.rev, crdt.RevisionAt(c.store.cfg.Now(), c.node)) // the next start sees how long ago it was
	b := c.store.db.NewBatch()
	c.must(b.Set(ceilingKey, encodeCeiling(ceiling{rev: rev, seq: c.seq}), nil))
	if !c.doubt {
		c.vouch(b)
	}
	if err := errors.Join(b.Commit(pebble.Sync), b.Close()); err != nil {
		return fmt.Errorf("release revisions: %w", err)
	}
	return nil
}

// run commits what is queued, batch by batch, until ctx ends or the log fails.
// Batches leave through out in order.
func (c *committer) run(ctx context.Context, out chan<- *batch) error {
	defer c.refuse()
	for {
		first, ok := c.next(ctx, out)
		if !ok {
			return nil
		}
		b := &batch{}
		c.now = c.store.cfg.Now()
		c.space = sync.OnceValue(c.store.space.check)
		c.evaluate(b, first)
		c.fill(b)
		if err := c.seal(b); err != nil {
			c.store.fail(err)
			b.answer(err)
			return err
		}
		changes := len(b.changes)
		out <- b
		c.trim(trimBusy + 2*changes)
		c.bury()
	}
}

// next waits for a request, tidying up meanwhile.
func (c *committer) next(ctx context.Context, out chan<- *batch) (*request, bool) {
	for {
		select {
		case <-ctx.Done():
			return nil, false
		case r := <-c.store.queue:
			return r, true
		default:
		}
		if c.trim(trimIdle) {
			if c.settled {
				c.pass(&batch{view: c.freeze()}, out) // lets the memory of the old view go
			}
			continue
		}
		if c.bury(); c.stale {
			c.pass(&batch{view: c.freeze()}, out)
			continue
		}
		if err := c.sweep(); err != nil {
			c.store.cfg.Log.Warn("compacted revisions are not removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, false
		case r := <-c.store.queue:
			return r, true
		case <-c.store.nudge:
		}
	}
}

// fill adds what else is queued to the batch, up to its bounds, and what comes
// until the batch before is on disk: each batch costs a sync, here and on every
// peer, whatever is in it.
func (c *committer) fill(b *batch) {
	for b.bytes < c.store.cfg.BatchBytes && len(b.reqs) < c.store.cfg.QueueLength {
		select {
		case r := <-c.store.queue:
			c.evaluate(b, r)
			continue
		default:
		}
		select {
		case r := <-c.store.queue:
			c.evaluate(b, r)
		case <-c.store.idle:
			return
		}
	}
	<-c.store.idle
}

// pass sends out a batch that needs no sync.
func (c *committer) pass(b *batch, out chan<- *batch) {
	<-c.store.idle
	out <- b
}

// refuse answers what is still queued when the committer ends.
func (c *committer) refuse() {
	for {
		select {
		case r := <-c.store.queue:
			r.err = ErrClosed
			close(r.done)
		default:
			return
		}
	}
}

func (c *committer) evaluate(b *batch, r *request) {
	b.reqs = append(b.reqs, r)
	c.request = r
	if r.do != nil {
		r.err = r.do(c, b)
		return
	}
	r.res, r.err = c.txn(b, r)
}

// disk returns the part of the batch that goes to disk.
func (c *committer) disk(b *batch) *pebble.Batch {
	if b.disk == nil {
		b.disk = c.store.db.NewBatch()
	}
	return b.disk
}

// must ends the process for an error that a batch in memory cannot have.
func (c *committer) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("store: add to batch: %v", err))
	}
}

// tick returns what names a new local change.
func (c *committer) tick(b *batch, cls class) (crdt.Dot, crdt.Stamp) {
	var stamp crdt.Stamp
	c.clock, stamp = c.clock.Tick(c.now)
	if cls.durable {
		if c.doubt && cls.replicated {
			c.renewDurable(b)
		}
		c.seq++
		return crdt.Dot{Origin: c.head.claims.own.Origin, Seq: c.seq}, stamp
	}
	c.memSeq++
	return crdt.Dot{Origin: c.head.claims.memory.Origin, Seq: c.memSeq}, stamp
}

// put appends a local put. Last is the newest version of the key, nil for
// none, and held the record of it, which only a replicated key needs.
func (c *committer) put(b *batch, op *Op, last *version, held *crdt.Record, ch crdt.Change) {
	cls := classOf(op.Key)
	dot, stamp := c.tick(b, cls)
	var r *crdt.Record
	if cls.replicated {
		r = crdt.Put(held, op.Key, op.Value, dot, stamp, ch)
	} else {
		r = &crdt.Record{Key: op.Key, Value: op.Value, Dot: dot, Stamp: stamp}
	}
	r.Lease = op.Lease
	c.write(b, r, cls, last)
}

// delete appends the delete of a key that exists, last being its newest
// version and held the record of it, nil when it is yet to be read.
func (c *committer) delete(b *batch, key []byte, last *version, held *crdt.Record) {
	cls := classOf(key)
	dot, stamp := c.tick(b, cls)
	r := &crdt.Record{Key: key, Deleted: true, Dot: dot, Stamp: stamp}
	if cls.replicated {
		if held == nil {
			held = c.held(key, last)
		}
		r = crdt.Delete(held, key, dot, stamp)
	}
	c.write(b, r, cls, last)
}

// write appends a local change.
func (c *committer) write(b *batch, r *crdt.Record, cls class, last *version) {
	c.clock.High = max(c.clock.High, r.Stamp)
	if last != nil && last.deleted {
		last = nil
	}
	if r.Lease != 0 {
		c.lease(b, r, cls)
	}
	born := r.Stamp
	if last != nil && !r.Deleted && last.uid == hashUID(r.UID) {
		born = last.born
	}
	onDisk := c.append(b, r, cls, last, born)
	c.note(r.Dot, cls)
	if cls.replicated && onDisk {
		c.request.hold = true
	}
}

// append gives a change its place in history and adds it to the batch, the
// index and, if its class says so, the disk. Replaced is the version that
// existed before it, nil for none, and born when the life it shows began. It
// reports whether the change goes to disk.
func (c *committer) append(b *batch, r *crdt.Record, cls class, replaced *version, born crdt.Stamp) (onDisk bool) {
	c.rev = c.rev.Next(c.now, c.node)
	r.Mod, r.Create, r.Version = c.rev, 0, 0
	if !r.Deleted {
		r.Create, r.Version = r.Mod, 1
		if replaced != nil {
			r.Create, r.Version = crdt.Revision(replaced.create), replaced.version+1
		}
	}
	if replaced != nil && replaced.lease != 0 && replaced.lease != r.Lease {
		c.store.lessor.detach(replaced.lease, r.Key)
	}
	if cls.durable {
		c.scratch = crdt.AppendRecord(c.scratch[:0], r)
		c.tally.rev = int64(r.Mod)
		c.tally.records++
		b.logged = true
		if b.bulk != nil {
			b.bulk.add(int64(r.Mod), c.scratch)
		} else {
			c.must(c.disk(b).Set(numberKey(logPrefix, int64(r.Mod)), c.scratch, nil))
		}
		c.store.recent.add(r)
		onDisk = true
	} else {
		detach(r)
		onDisk = cls.holders && c.keepHolder(b, r, replaced)
	}
	v := newVersion(r, cls, born)
	v.silent = r.Deleted && replaced == nil
	if !v.silent {
		b.changes = append(b.changes, &change{rec: r, prev: replaced})
	}
	b.bytes += len(r.Key) + len(r.Value)
	key := c.head.add(r.Key, v)
	if r.Deleted && cls.replicated {
		c.graves.add(grave{rev: v.rev, key: key}, cls)
	}
	if cls.evicted {
		c.events.noteChange(&v, replaced, key)
	}
	return onDisk
}

// detach copies what is kept in memory for long out of the message that it came
// in, which it would hold on to.
func detach(r *crdt.Record) {
	r.Key, r.Value, r.Meta = bytes.Clone(r.Key), bytes.Clone(r.Value), bytes.Clone(r.Meta)
}

// freeze returns the present state as a view.
func (c *committer) freeze() *view {
	c.stale = false
	return c.head.freeze()
}

// seal starts the batch on its way to disk and fixes the view it makes.
func (c *committer) seal(b *batch) error {
	cfg := &c.store.cfg
	c.evict(b)
	covered := c.reserved.covers(c.rev, c.seq)
	if !covered || b.disk != nil && c.reserved.low(c.rev, c.seq, c.now, cfg.RevisionReserve) {
		c.reserved = c.reserved.raise(c.rev, c.seq, c.now, cfg.RevisionReserve)
		c.must(c.disk(b).Set(ceilingKey, encodeCeiling(c.reserved), nil))
	}
	c.saveClaims(b)
	c.dropEmptyBulk(b)
	c.bound()
	b.view = c.freeze()
	if b.disk == nil && !b.logged {
		return nil
	}
	if b.logged {
		b.upTo = c.tally.rev
		c.must(c.disk(b).Set(tallyKey, encodeTally(c.tally), nil))
	}
	if err := c.awaitBulk(); err != nil {
		return err
	}
	if b.bulk != nil {
		return c.finishBulk(b)
	}
	if err := c.store.db.ApplyNoSyncWait(b.disk, pebble.Sync); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// publish waits for each batch to be durable, makes it visible and answers its
// callers, until batches is closed.
func (s *Store) publish(batches <-chan *batch) error {
	defer s.holds.releaseAll()
	var failed error
	s.idle <- struct{}{}
	for b := range batches {
		if failed == nil && b.disk != nil {
			if err := s.awaitDisk(b); err != nil {
				failed = fmt.Errorf("sync log: %s", oneLine(err.Error()))
				s.fail(failed)
			} else {
				failed = b.disk.Close()
				s.remember(b)
			}
		}
		s.idle <- struct{}{}
		if failed != nil {
			b.answer(failed)
			continue
		}
		if old := s.view.Swap(b.view); old.floor != b.view.floor {
			s.nudgeCommitter() // what only the old view needed may go
		}
		s.recent.shrink(b.view.rev)
		s.hub.publish(b.changes, b.view.rev)
		if b.reset {
			s.hub.end(ErrCompacted)
		}
		s.settle(b)
	}
	return failed
}

// awaitDisk waits until the batch is on disk.
func (s *Store) awaitDisk(b *batch) error {
	if b.bulk != nil {
		if err := b.bulk.wait(s); err != nil {
			return err
		}
	}
	return b.disk.SyncWait()
}

// remember notes in the mark how far the log has come.
func (s *Store) remember(b *batch) {
	if !b.logged {
		return
	}
	if err := s.mark.write(b.upTo); err != nil {
		s.cfg.Log.Warn("end of the log is not noted", "err", err)
	}
}

func (s *Store) nudgeCommitter() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// answer tells the callers that the batch is done, or that it failed.
func (b *batch) answer(err error) {
	for _, r := range b.reqs {
		if err != nil {
			r.err = err
		}
		close(r.done)
	}
}
