package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// A lease runs out on every node that holds one of its keys, so that it does
// so also when the node that granted it is gone. Each change of a key carries
// how long its lease has left; keeping a lease alive is a change too, of a key
// below leaseKeyPrefix that hangs on the lease itself.
const leaseKeyPrefix = "/moot/leases/"

// tellLease lets peers know that a lease has been kept alive.
func (s *Store) tellLease(id, ttl int64) error {
	key := fmt.Appendf(nil, "%s%016x", leaseKeyPrefix, uint64(id))
	return s.submit(context.Background(), &request{do: func(c *committer, b *batch) error {
		if !s.lessor.alive(id) {
			return nil
		}
		op := &Op{Kind: OpPut, Key: key, Value: strconv.AppendInt(nil, ttl, 10), Lease: id}
		_, last := c.head.get(key)
		c.put(b, op, last, c.held(key, last), crdt.Change{})
		return nil
	}})
}

// adoptLease attaches a put of a peer to its lease, which begins or is extended
// with what it had left when the put was made, whatever the clocks say.
func (c *committer) adoptLease(b *batch, r *crdt.Record, cls class) {
	if r.Deadline == 0 {
		return
	}
	ls := c.store.lessor
	left := min(time.UnixMilli(r.Deadline).Sub(r.Stamp.Time()), maxLeaseTTL*time.Second)
	left = max(left, time.Second)
	ls.mu.Lock()
	l := ls.leases[r.Lease]
	if l == nil {
		l = ls.insert(r.Lease, int64((left+time.Second-1)/time.Second))
		l.adopted = true
	}
	if until := ls.now().Add(left + ls.late); l.adopted && until.After(l.deadline) {
		l.deadline = until
	}
	l.keys[string(r.Key)] = struct{}{}
	store := cls.durable && !l.stored
	l.stored = l.stored || store
	ls.mu.Unlock()
	ls.signal()
	if store {
		c.must(c.disk(b).Set(numberKey(leasePrefix, l.ID), encodeNumber(-l.TTL), nil))
	}
}
