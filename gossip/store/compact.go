package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// History entries trimmed at a time: after each batch of writes, and while
// nothing else is to do.
const (
	trimBusy = 256
	trimIdle = 2048
)

// sweepBatch is the number of revisions removed from disk in one batch.
const sweepBatch = 4096

// Compact gives up the past before rev: reads and watches before it get
// [ErrCompacted] from now on, and what only they need is removed in the
// background. It fails with [ErrCompacted] when that has happened already and
// with [ErrFutureRevision] when rev has not.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	return s.submit(ctx, &request{do: func(c *committer, _ *batch) error {
		switch {
		case rev <= c.head.floor:
			return ErrCompacted
		case rev > c.head.rev:
			return ErrFutureRevision
		}
		c.setFloor(rev)
		return nil
	}})
}

func (c *committer) setFloor(rev int64) {
	c.head.floor = rev
	c.settled = false
}

// bound moves the floor up when the history has outgrown its bounds, leaving
// an eighth of each so that it does not happen with every write.
func (c *committer) bound() {
	h, cfg := &c.head, &c.store.cfg
	if len(h.history) <= cfg.HistoryEntries && h.historyBytes <= cfg.HistoryBytes && h.historyMemory <= cfg.HistoryMemory {
		return
	}
	rest := head{historyBytes: h.historyBytes, historyMemory: h.historyMemory}
	n := 0
	for n < len(h.history)-1 &&
		(len(h.history)-n > cfg.HistoryEntries-cfg.HistoryEntries/8 ||
			rest.historyBytes > cfg.HistoryBytes-cfg.HistoryBytes/8 ||
			rest.historyMemory > cfg.HistoryMemory-cfg.HistoryMemory/8) {
		rest.account(h.history[n], -1)
		n++
	}
	if rev := h.history[n].rev; rev > h.floor {
		c.setFloor(rev)
	}
}

// trim takes up to limit changes before the floor out of the history. It
// reports whether it got anywhere: reads under way may hold it up.
func (c *committer) trim(limit int) bool {
	if c.settled {
		return false
	}
	// Not beyond the floor that readers see.
	floor := c.store.view.Load().floor
	force := int64(0)
	h, cfg := &c.head, &c.store.cfg
	if len(h.history) > 2*cfg.HistoryEntries || h.historyBytes > 2*cfg.HistoryBytes || h.historyMemory > 2*cfg.HistoryMemory {
		force = floor
	}
	before := len(c.head.history)
	to := c.store.pins.trim(floor, force)
	past := c.head.past.Clone()
	garbage, done := c.head.trim(to, limit, func(v *version) { c.leavePast(past, v) })
	c.head.past = past
	c.collect(garbage)
	c.settled = done && to == c.head.floor
	return c.settled || len(c.head.history) < before
}

// leavePast notes that history tells of v no more.
func (c *committer) leavePast(past crdt.Vector, v *version) {
	c.leaveDot(past, v.dot)
	if !v.joined {
		return
	}
	if r, err := c.store.record(v); err == nil {
		for o, seq := range r.Seen() {
			c.leaveDot(past, crdt.Dot{Origin: o, Seq: seq})
		}
	} else {
		past.Join(c.head.claims.vector()) // too much is safe
	}
}

// collect notes which of the versions are to be removed from disk.
func (c *committer) collect(garbage []version) {
	for i := range garbage {
		if garbage[i].rec == nil {
			c.garbage = append(c.garbage, garbage[i].rev)
		}
	}
	if len(c.garbage) >= sweepBatch {
		if err := c.sweep(); err != nil {
			c.store.cfg.Log.Warn("compacted revisions are not removed", "err", err)
		}
	}
}

// sweep removes the garbage from disk, together with the floor that makes it
// garbage. It does not wait for the disk: losing both in a crash is harmless.
func (c *committer) sweep() error {
	for len(c.garbage) > 0 {
		if !c.store.space.spare() {
			return nil
		}
		n := min(len(c.garbage), sweepBatch)
		if err := c.sweepSome(c.garbage[:n]); err != nil {
			return err
		}
		c.garbage = c.garbage[n:]
	}
	c.garbage = nil
	return nil
}

func (c *committer) sweepSome(revs []int64) (err error) {
	b := c.store.db.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	c.must(b.Set(floorKey, encodeNumber(c.head.floor), nil))
	c.must(b.Set(pastKey, lasting(c.head.past).Append(nil), nil))
	c.must(b.Set(forgotKey, c.head.forgotten.Append(nil), nil))
	left := c.tally
	left.records -= int64(len(revs))
	c.must(b.Set(tallyKey, encodeTally(left), nil))
	for _, rev := range revs {
		c.must(b.Delete(numberKey(logPrefix, rev), nil))
	}
	if err := c.awaitBulk(); err != nil {
		return err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("remove compacted revisions: %w", err)
	}
	c.tally = left
	return nil
}
