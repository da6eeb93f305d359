package crdt

import (
	"fmt"
	"time"
)

// NodeNumber is the number a node got when it joined. It tells whose history a
// revision belongs to.
type NodeNumber uint16

// Revision is a position in one node's history: 47 bits of hybrid time in
// ticks of 10 µs above 16 bits of node number. Revisions of one node increase
// strictly, those of different nodes compare roughly by time, and all fit in a
// positive int64.
type Revision int64

const (
	revisionNodeBits = 16
	revisionTick     = 10 * time.Microsecond
	maxRevisionTicks = 1<<47 - 1
)

// revisionEpoch is tick 0: 47 bits of 10 µs last 44 years from here.
const revisionEpoch = 1_735_689_600_000_000 // 2025-01-01T00:00:00Z in Unix microseconds

func revisionTicks(t time.Time) int64 {
	ticks := (t.UnixMicro() - revisionEpoch) / int64(revisionTick/time.Microsecond)
	return min(max(ticks, 0), maxRevisionTicks)
}

// RevisionAt returns the revision of node at t. A time outside the range gets
// the nearest end.
func RevisionAt(t time.Time, node NodeNumber) Revision {
	return Revision(revisionTicks(t)<<revisionNodeBits | int64(node))
}

// Next returns the first revision of node after r that is not before now.
func (r Revision) Next(now time.Time, node NodeNumber) Revision {
	ticks := max(revisionTicks(now), r.ticks()+1)
	return Revision(ticks<<revisionNodeBits | int64(node))
}

// Add returns the revision d later, of the same node.
func (r Revision) Add(d time.Duration) Revision {
	ticks := min(r.ticks()+int64(d/revisionTick), maxRevisionTicks)
	return Revision(ticks<<revisionNodeBits | int64(r.Node()))
}

// Node returns the number of the node whose history r belongs to.
func (r Revision) Node() NodeNumber { return NodeNumber(r & (1<<revisionNodeBits - 1)) }

// Time returns the hybrid time of r.
func (r Revision) Time() time.Time {
	return time.UnixMicro(revisionEpoch + r.ticks()*int64(revisionTick/time.Microsecond))
}

// String returns the time and the node.
func (r Revision) String() string {
	return fmt.Sprintf("%s@%d", r.Time().UTC().Format("2006-01-02T15:04:05.00000Z"), r.Node())
}

func (r Revision) ticks() int64 { return int64(r) >> revisionNodeBits }
