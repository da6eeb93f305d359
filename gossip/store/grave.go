package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// eventTombstoneKeep bounds how long deletes of Events are remembered: there
// are many, and one that is missed runs out on its own.
const eventTombstoneKeep = 10 * time.Minute

// graves are the tombstones of replicated keys, which stay in the index and
// the log until all peers have them, or for a bounded time.
//
// One queue a class, oldest first, and one for those of Leases that a start found on
// disk; some have been replaced since. The oldest that must stay holds up those
// behind it. Those that are of changes which are not included wait apart until more
// is.
type graves struct{ durable, memory, events, recovered, unfinished []grave }

type grave struct {
	rev int64
	key []byte
}

func (g *graves) add(it grave, cls class) {
	switch {
	case cls.durable:
		g.durable = append(g.durable, it)
	case cls.evicted:
		g.events = append(g.events, it)
	default:
		g.memory = append(g.memory, it)
	}
}

// finish has those that waited looked at again.
func (g *graves) finish() {
	g.durable = append(g.durable, g.unfinished...)
	g.unfinished = nil
	g.sort()
}

// sort puts the oldest first.
func (g *graves) sort() {
	for _, queue := range [][]grave{g.durable, g.memory, g.events} {
		slices.SortFunc(queue, func(a, b grave) int { return cmp.Compare(a.rev, b.rev) })
	}
}

// SetStable says which changes all known members include: their tombstones may
// go. A node without peers passes a vector that covers all of its own.
func (s *Store) SetStable(v crdt.Vector) {
	v = v.Clone()
	s.stable.Store(&v)
	s.nudgeCommitter()
}

// buryBatch is the number of tombstones looked at in one go.
const buryBatch = 2048

// bury forgets the tombstones that nobody needs, some at a time.
func (c *committer) bury() {
	now := c.store.cfg.Now()
	n := c.head.items.Len()
	g, keep := &c.graves, c.store.cfg.TombstoneKeep
	g.durable = c.buryOf(g.durable, now.Add(-keep))
	g.memory = c.buryOf(g.memory, now.Add(-keep))
	g.recovered = c.buryOf(g.recovered, now.Add(-keep))
	g.events = c.buryOf(g.events, now.Add(-eventTombstoneKeep))
	c.stale = c.stale || c.head.items.Len() < n
}

// buryOf forgets tombstones from the front of the queue: those that all peers
// have, and those from before old. It returns the rest.
func (c *committer) buryOf(queue []grave, old time.Time) []grave {
	trimmed := c.store.pins.past()
	if history := c.head.history; len(history) > 0 {
		// It is trimmed in steps. A peer that goes on with it must find the delete.
		trimmed = min(trimmed, history[0].rev)
	}
	forgotten := c.head.forgotten
	var garbage []version
	var keys [][]byte
	for range buryBatch {
		if len(queue) == 0 || queue[0].rev >= trimmed {
			break
		}
		it, ok := c.head.items.Get(&item{key: queue[0].key})
		if ok && it.newest().rev == queue[0].rev {
			v := it.newest()
			seen, free := c.seen(it.key, v)
			if !free && crdt.Revision(v.rev).Time().After(old) {
				break
			}
			if durable := classOf(it.key).durable; durable && c.unfinished(it.key, v, seen) {
				c.graves.unfinished = append(c.graves.unfinished, queue[0])
				queue = queue[1:]
				continue
			} else if durable {
				if len(keys) == 0 {
					forgotten = forgotten.Clone()
				}
				forgotten.Join(seen)
			}
			garbage = append(garbage, it.versions...)
			keys = append(keys, it.key)
			c.head.remove(it)
		}
		queue = queue[1:]
	}
	// What is forgotten must be on disk before what said it goes.
	c.head.forgotten = forgotten
	c.collect(garbage)
	c.dropHolders(keys)
	return queue
}

// seen returns the changes that a peer must have to know of a tombstone, and
// whether all peers have them.
func (c *committer) seen(key []byte, v *version) (crdt.Vector, bool) {
	seen := crdt.Vector{v.dot.Origin: v.dot.Seq}
	if v.joined {
		seen = c.held(key, v).Seen()
	}
	stable := c.store.stable.Load()
	return seen, stable != nil && stable.Includes(seen)
}

// unfinished reports whether a tombstone is of changes that this replica has and does
// not include. Their origin may have been lost in the middle of a frame, and then
// nobody ever will. Noted as forgotten they would have all refuse each other; not
// noted, or noted in part, a replica that was away would bring back what was deleted.
// Seen are the changes that a peer must include to know of the tombstone.
func (c *committer) unfinished(key []byte, v *version, seen crdt.Vector) bool {
	cl := &c.head.claims
	return !cl.includes(seen) || len(c.head.beyond) > 0 && !cl.includes(lasting(c.held(key, v).Seen()))
}

// forgottenKey names what is no change but a note at the end of a cut: which
// deletes the sender has forgotten. The replica that takes the cut in knows as
// little of them, and must refuse the same peers.
const forgottenKey = "/moot/local/forgotten"

// forgottenNote returns the note of what v has forgotten.
func forgottenNote(v *view) *crdt.Record {
	return &crdt.Record{
		Key:   []byte(forgottenKey),
		Value: v.forgotten.Append(nil),
		Dot:   crdt.Dot{Origin: v.claims.own.Origin, Seq: max(v.claims.own.Seq, 1)},
		Stamp: 1,
	}
}

// takeNote takes over what a peer has forgotten. When this replica has not seen it
// either, its history tells of what was there before and not that it is gone: no
// peer may go on with that.
func (c *committer) takeNote(b *batch, note *crdt.Record) error {
	v, err := crdt.DecodeVector(note.Value)
	if err != nil {
		return fmt.Errorf("apply note: %w: %w", ErrRejected, err)
	}
	if v = lasting(v); c.head.forgotten.Includes(v) {
		return nil
	}
	forgotten := c.head.forgotten.Clone()
	forgotten.Join(v)
	c.head.forgotten = forgotten
	c.must(c.disk(b).Set(forgotKey, forgotten.Append(nil), nil))
	if c.head.claims.includes(v) {
		return nil
	}
	past := c.head.past.Clone()
	past.Join(v)
	c.head.past = past
	c.must(c.disk(b).Set(pastKey, lasting(past).Append(nil), nil))
	c.rev = c.rev.Next(c.now, c.node)
	c.head.rev = int64(c.rev)
	c.setFloor(c.head.rev)
	c.must(c.disk(b).Set(floorKey, encodeNumber(c.head.floor), nil))
	return nil
}
