package store

import (
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

const (
	// aheadReserve is reserved at a time while revisions run ahead of the wall
	// clock: 100,000 revisions. It is small because a crash skips what is
	// reserved, and a crash loop must not carry revisions away.
	aheadReserve = time.Second
	// sequenceReserve is the number of sequences reserved at a time.
	sequenceReserve = 4096
)

// ceiling is what has been reserved on disk: no revision and no sequence above
// it has ever been issued.
type ceiling struct {
	rev crdt.Revision
	seq uint64
}

// covers reports whether rev and seq may be issued.
func (c ceiling) covers(rev crdt.Revision, seq uint64) bool {
	return rev <= c.rev && seq <= c.seq
}

// ranUntil returns a time until which the store that reserved this ran at the least.
func (c ceiling) ranUntil(reserve time.Duration) time.Time { return c.rev.Add(-reserve).Time() }

// raise returns the ceiling to reserve when rev and seq are the last issued.
//
// While revisions follow the wall clock it is a whole reserve ahead of it, so
// that traffic which never touches the disk needs one small write in that time.
// After a crash revisions continue at the ceiling, ahead of the clock, until
// the clock has caught up; the reserve is small then.
func (c ceiling) raise(rev crdt.Revision, seq uint64, now time.Time, reserve time.Duration) ceiling {
	next := ceiling{rev: max(c.rev, rev), seq: max(c.seq, seq+sequenceReserve)}
	if rev.Time().Sub(now) > aheadReserve {
		next.rev = max(next.rev, rev.Add(aheadReserve))
	} else {
		next.rev = max(next.rev, crdt.RevisionAt(now, rev.Node()).Add(reserve))
	}
	return next
}

// low reports whether less than half a reserve is left above rev and seq, so
// that the next batch that goes to disk anyway should raise the ceiling.
func (c ceiling) low(rev crdt.Revision, seq uint64, now time.Time, reserve time.Duration) bool {
	if rev.Time().Sub(now) > aheadReserve {
		reserve = aheadReserve
	}
	return c.rev < rev.Add(reserve/2) || c.seq < seq+sequenceReserve/2
}

// firstRevision returns the revision a store starts at: after all that may
// have been issued, and not before the wall clock.
func (c ceiling) firstRevision(now time.Time, node crdt.NodeNumber) crdt.Revision {
	return c.rev.Next(now, node)
}
