package store

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
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
	records, err := readHolders(s.db)
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
	cfg := testConfig(t)
	mem := vfs.NewMem()
	cfg.FS = mem
	room := func(n uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40}) }
	room(1 << 30)
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
