package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// maxLeaseTTL is the longest lease in seconds, as in etcd.
const maxLeaseTTL = 9_000_000_000

// lease is a granted time to live and the keys that go when it runs out.
type lease struct {
	Lease
	deadline time.Time
	keys     map[string]struct{}
	stored   bool // it is on disk, since a durable key needs it
	adopted  bool // another node granted it
}

// remaining returns the seconds left, rounded up.
func (l *lease) remaining(now time.Time) int64 {
	return max(0, int64((l.deadline.Sub(now)+time.Second-1)/time.Second))
}

// lessor keeps the leases. A lease lives in memory; it goes to disk with the
// first durable key attached to it. A restart begins every stored lease anew,
// so it may live longer than granted, never shorter.
type lessor struct {
	now  func() time.Time
	wake chan struct{} // a deadline may have come nearer
	// late is how much longer this node gives leases that another granted, so
	// that the one that granted it ends it first, if it lives.
	late time.Duration

	mu     sync.Mutex
	leases map[int64]*lease
}

func newLessor(now func() time.Time) *lessor {
	return &lessor{
		now:    now,
		wake:   make(chan struct{}, 1),
		late:   2*time.Second + rand.N(8*time.Second),
		leases: make(map[int64]*lease),
	}
}

// openLeases reads the stored leases and attaches the keys of the index.
func (l *loader) openLeases(db *pebble.DB, now func() time.Time) (*lessor, error) {
	ls := newLessor(now)
	iter, err := db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{leasePrefix}, UpperBound: []byte{leasePrefix + 1},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = iter.Close() }()
	for ok := iter.First(); ok; ok = iter.Next() {
		ttl, err := decodeNumber(iter.Value())
		if err != nil || len(iter.Key()) != 9 {
			return nil, fmt.Errorf("read lease %x: malformed", iter.Key())
		}
		id := int64(binary.BigEndian.Uint64(iter.Key()[1:]))
		l := ls.insert(id, max(ttl, -ttl))
		if l.stored = true; ttl < 0 { // another node's
			l.adopted, l.deadline = true, l.deadline.Add(ls.late)
		}
	}
	if err := iter.Error(); err != nil {
		return nil, err
	}
	l.head.items.Ascend(func(it *item) bool {
		if v := it.newest(); v.lease != 0 && !v.deleted {
			ls.attach(v.lease, it.key)
		}
		return true
	})
	return ls, err
}

// insert adds a lease that starts now. The caller holds the lock or is alone.
func (ls *lessor) insert(id, ttl int64) *lease {
	l := &lease{
		Lease:    Lease{ID: id, TTL: ttl},
		deadline: ls.now().Add(time.Duration(ttl) * time.Second),
		keys:     make(map[string]struct{}),
	}
	ls.leases[id] = l
	return l
}

// Grant makes a lease of ttl seconds. ID 0 chooses one. It fails with
// [ErrLeaseExists] when the ID is in use.
func (s *Store) Grant(_ context.Context, id, ttl int64) (Lease, error) {
	if ttl < 1 || ttl > maxLeaseTTL {
		return Lease{}, fmt.Errorf("grant lease: ttl of %d s is not between 1 and %d", ttl, int64(maxLeaseTTL))
	}
	ls := s.lessor
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for id == 0 {
		if n := rand.Int64(); ls.leases[n] == nil {
			id = n
		}
	}
	if ls.leases[id] != nil {
		return Lease{}, ErrLeaseExists
	}
	l := ls.insert(id, ttl)
	ls.signal()
	return l.Lease, nil
}

// Revoke ends a lease and deletes its keys.
func (s *Store) Revoke(ctx context.Context, id int64) error {
	return s.submit(ctx, &request{do: func(c *committer, b *batch) error { return c.revoke(b, id) }})
}

// KeepAlive begins the lease's time anew and returns it in seconds. Peers are
// told when replicated keys hang on it.
func (s *Store) KeepAlive(id int64) (int64, error) {
	ttl, shared, err := s.lessor.keepAlive(id)
	if err == nil && shared && s.hub.tailed() {
		err = s.tellLease(id, ttl)
	}
	return ttl, err
}

func (ls *lessor) keepAlive(id int64) (ttl int64, shared bool, err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.leases[id]
	if l == nil || !l.deadline.After(ls.now()) {
		return 0, false, ErrLeaseNotFound
	}
	l.deadline = ls.now().Add(time.Duration(l.TTL) * time.Second)
	for k := range l.keys {
		if classOf([]byte(k)).replicated {
			return l.TTL, true, nil
		}
	}
	return l.TTL, false, nil
}

// TimeToLive returns how a lease stands, with its keys in order when asked.
func (s *Store) TimeToLive(id int64, keys bool) (LeaseStatus, error) {
	ls := s.lessor
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.leases[id]
	if l == nil || !l.deadline.After(ls.now()) {
		return LeaseStatus{}, ErrLeaseNotFound
	}
	st := LeaseStatus{Lease: l.Lease, Remaining: l.remaining(ls.now())}
	if keys {
		for k := range l.keys {
			if !strings.HasPrefix(k, leaseKeyPrefix) {
				st.Keys = append(st.Keys, []byte(k))
			}
		}
		slices.SortFunc(st.Keys, bytes.Compare)
	}
	return st, nil
}

// Leases returns the IDs of all leases in order.
func (s *Store) Leases() []int64 {
	ls := s.lessor
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ids := make([]int64, 0, len(ls.leases))
	for id := range ls.leases {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (ls *lessor) signal() {
	select {
	case ls.wake <- struct{}{}:
	default:
	}
}

// alive reports whether a key may be attached to the lease.
func (ls *lessor) alive(id int64) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.leases[id]
	return l != nil && l.deadline.After(ls.now())
}

// attach ties key to the lease. It returns the deadline and, if the lease is
// known, the lease itself.
func (ls *lessor) attach(id int64, key []byte) *lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.leases[id]
	if l != nil {
		l.keys[string(key)] = struct{}{}
	}
	return l
}

func (ls *lessor) detach(id int64, key []byte) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.leases[id]; l != nil {
		delete(l.keys, string(key))
	}
}

// expired returns the leases that have run out and when the next one will,
// zero when there is none.
func (ls *lessor) expired() (ids []int64, next time.Time) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	now := ls.now()
	for id, l := range ls.leases {
		switch {
		case !l.deadline.After(now):
			ids = append(ids, id)
		case next.IsZero() || l.deadline.Before(next):
			next = l.deadline
		}
	}
	slices.Sort(ids)
	return ids, next
}

// run calls expire with each lease that has run out, until ctx ends.
func (ls *lessor) run(ctx context.Context, expire func(context.Context, int64)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ls.wake:
		case <-timer.C:
		}
		ids, next := ls.expired()
		for _, id := range ids {
			expire(ctx, id)
		}
		switch {
		case len(ids) > 0:
			timer.Reset(expiryRetry)
		case !next.IsZero():
			timer.Reset(next.Sub(ls.now()) + time.Millisecond)
		}
	}
}

// expiryRetry is the pause after leases ran out: another look finds those
// that could not be ended, on a full disk for one.
const expiryRetry = 500 * time.Millisecond

// expire ends a lease unless it has been kept alive meanwhile.
func (s *Store) expire(ctx context.Context, id int64) {
	err := s.submit(ctx, &request{do: func(c *committer, b *batch) error {
		if s.lessor.alive(id) {
			return nil
		}
		return c.revoke(b, id)
	}})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("lease is not ended", "lease", id, "err", err)
	}
}

// revoke deletes the keys of a lease and the lease.
func (c *committer) revoke(b *batch, id int64) error {
	ls := c.store.lessor
	ls.mu.Lock()
	l := ls.leases[id]
	if l == nil {
		ls.mu.Unlock()
		return ErrLeaseNotFound
	}
	keys := make([]string, 0, len(l.keys))
	touchesDisk := l.stored
	for k := range l.keys {
		keys = append(keys, k)
		touchesDisk = touchesDisk || classOf([]byte(k)).durable
	}
	ls.mu.Unlock()
	if err := c.checkSpace(false, touchesDisk); err != nil {
		return err
	}
	slices.SortFunc(keys, strings.Compare)
	for _, k := range keys {
		if alive, last := c.head.get([]byte(k)); alive != nil && alive.lease == id {
			c.delete(b, []byte(k), last, nil)
		}
	}
	ls.mu.Lock()
	delete(ls.leases, id)
	ls.mu.Unlock()
	if l.stored {
		if err := c.disk(b).Delete(numberKey(leasePrefix, id), nil); err != nil {
			return fmt.Errorf("revoke lease: %w", err)
		}
	}
	return nil
}

// lease attaches a put to its lease and stores the lease when it must survive
// a restart with the key.
func (c *committer) lease(b *batch, r *crdt.Record, cls class) {
	l := c.store.lessor.attach(r.Lease, r.Key)
	if l == nil {
		return
	}
	ls := c.store.lessor
	ls.mu.Lock()
	r.Deadline = max(0, r.Stamp.Time().Add(l.deadline.Sub(ls.now())).UnixMilli())
	store := cls.durable && !l.stored
	l.stored = l.stored || store
	ls.mu.Unlock()
	if store {
		c.must(c.disk(b).Set(numberKey(leasePrefix, l.ID), encodeNumber(l.TTL), nil))
	}
}
