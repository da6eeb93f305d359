package store

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

const lockKey = "/registry/leases/x/lock"

// lockOf is a Lease as the API server stores it, renewed for the n-th time.
func lockOf(holder string, n int) string {
	return fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"uid":"1","managedFields":[{"time":"%d"}]},`+
		`"spec":{"holderIdentity":%q,"leaseTransitions":1,"renewTime":"%[1]d"}}`, n, holder)
}

// onDisk counts the Leases that the disk of a closed store has.
func onDisk(t *testing.T, cfg Config) int {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it wrote nothing
	records, err := s.readHolders()
	if err != nil {
		t.Fatal(err)
	}
	return len(records)
}

// TestHolderOutlivesTheDaemon: who holds a Lease is there after a restart, though
// renewals never touch the disk.
func TestHolderOutlivesTheDaemon(t *testing.T) {
	cfg := testConfig(t)
	fs := &watchedFS{FS: vfs.NewMem()}
	cfg.FS = fs
	s, stop := start(t, cfg)
	for i, holder := range []string{"one", "two"} {
		bytes := fs.bytes.Load()
		put(t, s, lockKey, lockOf(holder, 100*i))
		if fs.bytes.Load() == bytes {
			t.Errorf("that %s holds the lease is not on disk", holder)
		}
		bytes = fs.bytes.Load()
		for n := range 50 {
			put(t, s, lockKey, lockOf(holder, 100*i+n+1))
		}
		if n := fs.bytes.Load() - bytes; n != 0 {
			t.Errorf("renewals of %s wrote %d bytes", holder, n)
		}
	}
	last := s.Revision()
	stop()

	s, stop = start(t, cfg)
	res, err := s.Range(t.Context(), RangeRequest{Key: []byte(lockKey)})
	if err != nil || len(res.KVs) != 1 {
		t.Fatalf("after a restart: %+v, %v", res, err)
	}
	if kv := res.KVs[0]; string(kv.Value) != lockOf("two", 100) || kv.ModRevision <= last || kv.Version != 1 {
		t.Errorf("after a restart, whose revisions come after %d: %+v", last, kv)
	}
	bytes := fs.bytes.Load()
	put(t, s, lockKey, lockOf("two", 200))
	if n := fs.bytes.Load() - bytes; n != 0 {
		t.Errorf("the first renewal after a restart wrote %d bytes", n)
	}
	del(t, s, lockKey)
	stop()

	s, stop = start(t, cfg)
	if got := get(t, s, lockKey, 0); got != "<none>" {
		t.Errorf("deleted before a restart: %s", got)
	}
	put(t, s, lockKey, lockOf("three", 0))
	put(t, s, lockKey, "no Lease")
	stop()
	if n := onDisk(t, cfg); n != 0 {
		t.Errorf("%d leases are on disk, of none", n)
	}
}

// TestDeletedLeaseStaysDeleted: of two replicas that start anew one still has a
// Lease that the other deleted. The disk has the tombstone for as long as memory.
func TestDeletedLeaseStaysDeleted(t *testing.T) {
	var ahead atomic.Int64
	a, b := pair(t, later(&ahead))
	put(t, a.s, lockKey, lockOf("one", 0))
	a.settle()
	put(t, b.s, lockKey, lockOf("one", 1))
	a.settle()
	del(t, b.s, lockKey)
	a.restart()
	b.restart()
	if got := get(t, a.s, lockKey, 0); got != lockOf("one", 0) {
		t.Fatalf("the one that knows nothing of the delete has %s", got)
	}
	a.settle()
	a.check()
	for _, r := range a.replicas {
		if got := get(t, r.s, lockKey, 0); got != "<none>" {
			t.Errorf("replica %d: %s", r.id, got)
		}
	}
	ahead.Add(int64(a.cfg.TombstoneKeep + 2*a.cfg.RevisionReserve)) // which a crash skips
	for _, r := range a.replicas {
		r.bury(0)
		r.watch.Close()
		r.stop()
		if n := onDisk(t, r.cfg); n != 0 {
			t.Errorf("replica %d has %d leases on disk after the tombstone went", r.id, n)
		}
	}
}

// TestTailsGoOnAfterAllWereDown: what comes over a link that breaks again and again
// counts, also when the history has left Leases that no vector tells of.
func TestTailsGoOnAfterAllWereDown(t *testing.T) {
	a, b := pair(t, nil)
	put(t, a.s, lockKey, lockOf("one", 0))
	put(t, a.s, lockKey+"2", lockOf("one", 0))
	a.settle()
	a.cluster.restart()
	put(t, a.s, lockKey, lockOf("one", 1))
	a.settle()
	a.bury(0)
	b.bury(0)
	a.settle()
	b.hangUp(a)
	const pieces = 5
	for i := range pieces {
		put(t, a.s, fmt.Sprint("/registry/big/", i), strings.Repeat("x", FrameBytes))
	}
	for range pieces + 1 { // each connection lasts for one frame
		b.pull(a)
		b.hangUp(a)
	}
	if !b.s.Vector().Includes(a.s.Vector()) {
		t.Error("not all has come, a frame a connection")
	}
}

// TestLeaseSetAside: a Lease that only a wiped replica had comes back to it, though it
// started anew meanwhile, and streams to it go on with the history after that.
func TestLeaseSetAside(t *testing.T) {
	a, b := pair(t, nil)
	put(t, b.s, "/registry/x", "x")
	a.settle()
	put(t, a.s, lockKey, lockOf("one", 0))
	if err := a.s.Wipe(t.Context(), b.s.Vector()); err != nil {
		t.Fatal(err)
	}
	a.watch.Close()
	a.follow()
	a.hangUp(b)
	b.hangUp(a)
	a.restart()
	a.settle()
	a.check()
	if got := get(t, a.s, lockKey, 0); got != lockOf("one", 0) {
		t.Fatalf("what was set aside is %s", got)
	}
	put(t, a.s, lockKey, lockOf("one", 1))
	a.settle()
	a.bury(0)
	b.hangUp(a)
	if b.tail(a).cut != nil {
		t.Error("the peer that has everything gets a cut")
	}
}

// TestOrphanIsToldOf: a peer that knows all that vectors tell of gets a Lease that
// the history has left while no vector told of it, whether one does by now or not.
func TestOrphanIsToldOf(t *testing.T) {
	for what, all := range map[string]bool{"all were down": true, "one was down": false} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 1, 3, nil)
			a, b, other := c.replicas[0], c.replicas[1], c.replicas[2]
			put(t, a.s, "/registry/x", "x")
			c.settle()
			other.hangUp(a)
			other.hangUp(b)
			put(t, b.s, lockKey, lockOf("one", 0))
			for a.pull(b) {
			}
			if all {
				c.restart()
			} else {
				a.restart()
			}
			a.bury(0)
			for a.pull(b) {
			}
			for other.pull(a) {
			}
			if got := get(t, other.s, lockKey, 0); got != lockOf("one", 0) {
				t.Errorf("the one that had not heard of the lease has %s", got)
			}
			c.settle()
			c.check()
		})
	}
}

// TestRecoveredTombstones go in time, however often the store starts, and hold up no
// others.
func TestRecoveredTombstones(t *testing.T) {
	var ahead atomic.Int64
	a, _ := pair(t, later(&ahead))
	put(t, a.s, lockKey, lockOf("one", 0))
	del(t, a.s, lockKey)
	for range 3 {
		a.restart()
		a.bury(1)
		put(t, a.s, "/registry/leases/y/a", "x")
		del(t, a.s, "/registry/leases/y/a")
		a.s.SetStable(a.s.Vector())
		a.bury(1)
		ahead.Add(int64(a.cfg.TombstoneKeep/3 + a.cfg.RevisionReserve))
	}
	a.restart()
	a.bury(0)
	a.watch.Close()
	a.stop()
	if n := onDisk(t, a.cfg); n != 0 {
		t.Errorf("%d leases are on disk after their tombstones went", n)
	}
}

// TestWipedLeaseStaysDeleted: a replica that missed a delete which is forgotten brings
// no Lease of before the last start back.
func TestWipedLeaseStaysDeleted(t *testing.T) {
	var ahead atomic.Int64
	a, b := pair(t, later(&ahead))
	for _, key := range []string{lockKey, "/registry/x/1", "/registry/x/2"} {
		put(t, a.s, key, lockOf("one", 0))
	}
	a.settle()
	a.cluster.restart()
	a.settle()
	a.hangUp(b)
	b.hangUp(a)
	del(t, b.s, lockKey)
	del(t, b.s, "/registry/x/1")
	ahead.Add(int64(a.cfg.TombstoneKeep + 2*a.cfg.RevisionReserve))
	b.bury(0)
	if _, err := b.s.Tail(t.Context(), a.s.Vector()); !errors.Is(err, ErrForgotten) {
		t.Fatalf("tail for one that was away: %v", err)
	}
	a.wipe(b)
	a.settle()
	a.check()
	if got := get(t, b.s, lockKey, 0); got != "<none>" {
		t.Errorf("the lease is back: %s", got)
	}
}

// TestLeasesOfLongAgo: what was deleted meanwhile may be forgotten, so a replica
// that was down for that long takes none of its Leases up.
func TestLeasesOfLongAgo(t *testing.T) {
	for what, kept := range map[time.Duration]bool{20 * time.Hour: true, 26 * time.Hour: false} {
		var ahead atomic.Int64
		cfg := testConfig(t)
		later(&ahead)(&cfg)
		cfg.FS = vfs.NewMem()
		s, stop := start(t, cfg)
		put(t, s, lockKey, lockOf("one", 0))
		ahead.Add(int64(100 * time.Hour)) // it runs, and has no reason to write
		stop()
		ahead.Add(int64(what))
		s, stop = start(t, cfg)
		if got := get(t, s, lockKey, 0); (got != "<none>") != kept {
			t.Errorf("after %v: %s", what, got)
		}
		stop()
		if n := onDisk(t, cfg); (n != 0) != kept {
			t.Errorf("after %v: %d leases are on disk", what, n)
		}
	}
}

// TestHolderOnAFullDisk: a lock is taken without room for it, and is on disk with
// the first renewal that finds some.
func TestHolderOnAFullDisk(t *testing.T) {
	cfg, room := smallDisk(t)
	s, stop := start(t, cfg)
	put(t, s, lockKey, lockOf("one", 0))
	room(uint64(cfg.MinFreeBytes) - 1)
	put(t, s, lockKey, lockOf("two", 1))
	put(t, s, lockKey, lockOf("two", 2))
	room(1 << 30)
	put(t, s, lockKey, lockOf("two", 3))
	put(t, s, lockKey, lockOf("two", 4))
	stop()
	s, _ = start(t, cfg)
	if got := get(t, s, lockKey, 0); got != lockOf("two", 3) {
		t.Errorf("after a restart: %s", got)
	}
}

// TestDeletedOnAFullDisk: there is no room for a tombstone, and none for what it
// stands for either.
func TestDeletedOnAFullDisk(t *testing.T) {
	cfg, room := smallDisk(t)
	s, stop := start(t, cfg)
	put(t, s, lockKey, lockOf("one", 0))
	room(uint64(cfg.MinFreeBytes)/4 - 1)
	del(t, s, lockKey)
	room(1 << 30)
	stop()
	s, _ = start(t, cfg)
	if got := get(t, s, lockKey, 0); got != "<none>" {
		t.Errorf("after a restart: %s", got)
	}
}

// TestOtherLifeOnAFullDisk: a change that brings another Lease in place of one is a
// delete and a put. With room for one of them only, neither is on disk.
func TestOtherLifeOnAFullDisk(t *testing.T) {
	a, b := pair(t, nil)
	room := func(n uint64) { b.fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40}) }
	put(t, a.s, lockKey, lockOf("one", 0))
	a.settle()
	b.hangUp(a)
	del(t, a.s, lockKey)
	put(t, a.s, lockKey, strings.Replace(lockOf("two", 1), `"uid":"1"`, `"uid":"2"`, 1))
	it, _ := a.s.view.Load().items.Get(&item{key: []byte(lockKey)})
	r, err := a.s.record(it.newest())
	if err != nil {
		t.Fatal(err)
	}
	room(uint64(b.cfg.MinFreeBytes) / 2)
	if err := b.s.Apply(t.Context(), onWire(t, []*crdt.Record{r}), a.s.Vector()); err != nil {
		t.Fatal(err)
	}
	room(1 << 30)
	b.watch.Close()
	b.stop()
	a.hangUp(b)
	b.open()
	a.settle()
	a.check()
}

// TestUIDTooLong: what no object of Kubernetes has is kept as it is.
func TestUIDTooLong(t *testing.T) {
	for _, key := range []string{"/registry/configmaps/x", lockKey} {
		cfg := testConfig(t)
		s, stop := start(t, cfg)
		value := strings.Replace(lockOf("one", 0), `"uid":"1"`, `"uid":"`+strings.Repeat("u", 5000)+`"`, 1)
		put(t, s, key, value)
		stop()
		s, _ = start(t, cfg)
		if got := get(t, s, key, 0); got != value {
			t.Errorf("%s after a restart: %.80s", key, got)
		}
	}
}

// TestHolderWaitsForAPeer: that a lock is taken is acknowledged as other writes
// are, a renewal at once.
func TestHolderWaitsForAPeer(t *testing.T) {
	cfg := testConfig(t)
	var held atomic.Int64
	cfg.Hold = func(_ int64, release func()) {
		held.Add(1)
		release()
	}
	s, _ := start(t, cfg)
	for i := range 3 {
		put(t, s, lockKey, lockOf("one", i))
		if n := held.Load(); n != 1 {
			t.Errorf("%d writes waited for a peer after %d, want 1", n, i+1)
		}
	}
	put(t, s, lockKey, lockOf("two", 9))
	if n := held.Load(); n != 2 {
		t.Errorf("%d writes waited for a peer, want 2", n)
	}
}
