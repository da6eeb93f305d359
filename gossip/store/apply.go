package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Apply takes in changes of a peer, in the order it sent them, as one step that
// readers see whole. Each that changes something gets the next local revision.
// upTo is what the replica includes after them, nil to claim nothing yet; see
// [Frame.Vector]. It returns once the changes are durable and visible.
//
// It fails with [ErrRejected] when a record is none that a peer may send, and
// with [crdt.ErrDrift] when a stamp is further ahead than Config.MaxDrift of the
// local clock and of what the store had when it was opened; upTo is not claimed then.
func (s *Store) Apply(ctx context.Context, records []*crdt.Record, upTo crdt.Vector) error {
	now := s.atLeast(s.cfg.Now())
	for _, r := range records {
		if err := s.checkRecord(r, now); err != nil {
			return err
		}
	}
	for o, seq := range upTo {
		if o == 0 || int64(seq) <= 0 {
			return fmt.Errorf("apply vector: %w: origin %s has sequence %d", ErrRejected, o, seq)
		}
	}
	return s.submit(ctx, &request{do: func(c *committer, b *batch) error { return c.applyAll(b, records, upTo) }})
}

// atLeast returns the later of now and the time that it must be: what the store had
// is of the past, and some time went by since it was opened. After a power loss
// machines without a clock of their own begin at times that are hours apart; they
// would refuse each other's changes until a time server is there again.
func (s *Store) atLeast(now time.Time) time.Time {
	if then := s.reached.Add(now.Sub(s.opened)); then.After(now) {
		return then
	}
	return now
}

// checkRecord refuses what no peer may send.
func (s *Store) checkRecord(r *crdt.Record, now time.Time) error {
	if err := r.Valid(); err != nil {
		return fmt.Errorf("apply: %w: %w", ErrRejected, err)
	}
	cls := classOf(r.Key)
	switch {
	case string(r.Key) == forgottenKey:
		return nil
	case !cls.replicated:
		return fmt.Errorf("apply key %q: %w: keys of its class stay where they are", r.Key, ErrRejected)
	case cls.durable == isVolatile(r.Dot.Origin):
		return fmt.Errorf("apply key %q: %w: origin %s is not of its class", r.Key, ErrRejected, r.Dot.Origin)
	case len(r.Key) > crdt.MaxKeyBytes || len(r.Value) > crdt.MaxValueBytes || len(r.Meta) > crdt.MaxMetaBytes:
		return fmt.Errorf("apply key %q: %w: it is too large", r.Key, ErrRejected)
	case int64(r.Dot.Seq) <= 0:
		return fmt.Errorf("apply key %q: %w: sequence %d is out of range", r.Key, ErrRejected, r.Dot.Seq)
	}
	if _, err := (crdt.Clock{}).Observe(now, r.Latest(), s.cfg.MaxDrift); err != nil {
		return fmt.Errorf("apply key %q of origin %s: %w", r.Key, r.Dot.Origin, err)
	}
	return nil
}

// applyAll takes in what a peer sent.
func (c *committer) applyAll(b *batch, records []*crdt.Record, upTo crdt.Vector) error {
	if err := c.checkApply(b, records, upTo); err != nil {
		return err
	}
	c.beginBulk(b, records)
	var lost []crdt.Conflict
	for _, r := range records {
		conflicts, err := c.applyOne(b, r)
		if err != nil {
			return err
		}
		lost = append(lost, conflicts...)
	}
	c.claim(upTo)
	conflicts, err := c.settleOwed(b)
	c.updateBeyond(records)
	c.keepConflicts(b, append(lost, conflicts...))
	c.request.hold = false // peers find the conflicts themselves
	return err
}

// checkApply makes sure that there is room and that nobody else uses the
// store's own incarnation.
func (c *committer) checkApply(b *batch, records []*crdt.Record, upTo crdt.Vector) error {
	var durable bool
	own := c.head.claims.own.Origin
	ahead := upTo[own]
	for _, r := range records {
		if string(r.Key) == forgottenKey {
			continue
		}
		durable = durable || classOf(r.Key).durable
		if r.Dot.Origin == own {
			ahead = max(ahead, r.Dot.Seq)
		}
	}
	if ahead > c.seq {
		// A peer knows more of this incarnation than it does itself.
		c.renew(b)
		c.store.cfg.Log.Error("a peer knows changes of this node's that this node never made: its data was rolled back or copied; it goes on as a new incarnation",
			"old", own, "known", ahead, "made", c.seq, "new", c.head.claims.own.Origin)
	}
	if durable {
		return c.space()
	}
	return nil
}

// applyOne takes in one change.
func (c *committer) applyOne(b *batch, came *crdt.Record) ([]crdt.Conflict, error) {
	if string(came.Key) == forgottenKey {
		return nil, c.takeNote(b, came)
	}
	if c.head.claims.covers(came.Dot) && (!came.Joined() || c.head.claims.includes(came.Seen())) {
		return nil, nil
	}
	alive, last := c.head.get(came.Key)
	var held *crdt.Record
	var conflicts []crdt.Conflict
	next := came
	switch {
	case last == nil:
		held = c.recall(nil, came)
	case came.Dot == last.dot && !came.Joined() && !last.joined:
		return nil, nil // the same, not claimed yet
	case last.joined || !came.Covers(last.dot) || otherLife(alive, came):
		held = c.recall(c.held(came.Key, last), came)
	}
	if held != nil {
		merged, outcome, lost, err := crdt.Merge(held, came)
		if err != nil {
			return nil, fmt.Errorf("apply: %w: %w", ErrRejected, err)
		}
		if outcome == crdt.Kept {
			return nil, nil
		}
		next, conflicts = merged, lost
	}
	c.take(b, came, next, alive, held)
	return conflicts, nil
}

// otherLife reports whether what came may hold a life that the version that
// exists, nil for none, is not of.
func otherLife(alive *version, came *crdt.Record) bool {
	return len(came.Meta) > 0 && (came.Joined() || !came.Deleted && (alive == nil || came.UID == "" || alive.uid != hashUID(came.UID)))
}

// recall returns what is held, nil for nothing, with the deletes that were
// forgotten and that what came shows to have been: a life in it whose create was
// included here before, and that is not held, was deleted and must not come back.
func (c *committer) recall(held, came *crdt.Record) *crdt.Record {
	forgotten := slices.ContainsFunc(came.Births(), func(birth crdt.Dot) bool {
		return c.head.claims.covers(birth) && (held == nil || !held.Covers(birth))
	})
	if !forgotten {
		return held
	}
	included := crdt.Vector{}
	for o, seq := range came.Seen() {
		if n := min(seq, c.head.claims.upTo(o)); n > 0 {
			included[o] = n
		}
	}
	return crdt.Recall(held, came, included)
}

// take appends what a change of a peer made of a key. Alive is the version that
// exists before, nil for none, and held the record of the newest version if it
// has been read.
func (c *committer) take(b *batch, came, next *crdt.Record, alive *version, held *crdt.Record) {
	cls := classOf(came.Key)
	r := *next // the caller's records stay as they are
	from := came
	if held != nil && next != came {
		from = leaseOf(held, came)
	}
	if r.Lease, r.Deadline = from.Lease, 0; from.Deadline > 0 {
		r.Deadline = max(1, from.Deadline+r.Stamp.Time().Sub(from.Stamp.Time()).Milliseconds())
	}
	c.clock.High = max(c.clock.High, r.Latest())
	if alive != nil && !r.Deleted && alive.uid != hashUID(r.UID) {
		// Another object has taken the place: watchers see the old one go.
		if held == nil {
			held = c.held(came.Key, alive)
		}
		c.append(b, crdt.Delete(held, came.Key, r.Dot, r.Stamp), cls, alive, r.Stamp)
		alive = nil
	}
	if r.Deleted {
		r.Lease, r.Deadline = 0, 0
	} else if r.Lease != 0 {
		c.adoptLease(b, &r, cls)
	}
	c.append(b, &r, cls, alive, r.Born())
}

// leaseOf returns which of two changes that were joined has the lease: the newer.
func leaseOf(held, came *crdt.Record) *crdt.Record {
	if came.Deleted || !held.Deleted && held.Stamp > came.Stamp {
		return held
	}
	return came
}
