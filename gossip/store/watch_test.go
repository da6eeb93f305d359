package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// TestSlowWatcher: a reader that stalls through a storm costs nothing but
// reading history, and misses nothing.
func TestSlowWatcher(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.WatchEvents = 10
	cfg.RecentBytes = 1
	s, _ := start(t, cfg)
	w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/registry/"), End: []byte("/registry0")})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 3000
	for i := range n { // nobody reads meanwhile
		kind := []string{"pods", "events"}[i%2]
		put(t, s, fmt.Sprintf("/registry/%s/%d", kind, i%50), fmt.Sprint(i))
	}
	w.Progress()
	var last int64
	for i := 0; i < n; {
		b := <-w.Events()
		if len(b.Events) == 0 {
			t.Fatalf("progress %d before event %d", b.Revision, i)
		}
		if len(b.Events) > cfg.WatchEvents {
			t.Fatalf("a batch of %d events", len(b.Events))
		}
		for _, e := range b.Events {
			if string(e.KV.Value) != fmt.Sprint(i) || e.KV.ModRevision <= last {
				t.Fatalf("event %d is %s at %d after %d", i, e.KV.Value, e.KV.ModRevision, last)
			}
			if i >= 50 && (e.Prev == nil || string(e.Prev.Value) != fmt.Sprint(i-50)) {
				t.Fatalf("event %d has previous %+v", i, e.Prev)
			}
			last = e.KV.ModRevision
			i++
		}
	}
	if b := <-w.Events(); len(b.Events) > 0 || b.Revision != s.Revision() {
		t.Errorf("last batch is %+v, want progress to %d", b, s.Revision())
	}
}

// TestWatcherFallsBehind: a reader that stalls beyond the window is told.
func TestWatcherFallsBehind(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.WatchEvents = 10
	cfg.HistoryEntries = 100
	s, _ := start(t, cfg)
	w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/a"), End: []byte("/b")})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 1000 {
		put(t, s, fmt.Sprintf("/a/%d", i%7), fmt.Sprint(i))
	}
	i := 0
	for b := range w.Events() {
		for _, e := range b.Events {
			if string(e.KV.Value) != fmt.Sprint(i) {
				t.Fatalf("event %d is %s", i, e.KV.Value)
			}
			i++
		}
	}
	if !errors.Is(w.Err(), ErrCompacted) {
		t.Errorf("ended after %d events with %v, want ErrCompacted", i, w.Err())
	}
	if s.CompactRevision() == 0 {
		t.Error("the history was not bounded")
	}
	if n := len(s.view.Load().history); n > 2*cfg.HistoryEntries {
		t.Errorf("%d changes are kept, bound is %d", n, cfg.HistoryEntries)
	}
	if _, err := s.Range(t.Context(), RangeRequest{Key: []byte("/a/1"), Revision: s.CompactRevision() - 1}); !errors.Is(err, ErrCompacted) {
		t.Errorf("read behind the window: %v", err)
	}
}

// TestHistoryBytes: big values fill the window sooner, and what leaves it
// leaves the disk.
func TestHistoryBytes(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.HistoryBytes = 1 << 20
	s, _ := start(t, cfg)
	for i := range 300 {
		put(t, s, fmt.Sprint("/a/", i%3), strings.Repeat("x", 10_000))
	}
	eventually(t, "history within its bound", func() bool {
		v := s.view.Load()
		return len(v.history) <= 105 && v.floor > 0
	})
	eventually(t, "log without what left the history", func() bool { return logEntries(t, s) <= 110 })
	if err := s.Compact(t.Context(), s.Revision()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "log with the newest alone", func() bool { return logEntries(t, s) == 3 })
	for i := range 3 {
		del(t, s, fmt.Sprint("/a/", i))
	}
	put(t, s, "/b", "")
	if err := s.Compact(t.Context(), s.Revision()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "log with the deletes", func() bool { return logEntries(t, s) == 4 })
	s.SetStable(crdt.Vector{s.Origin(): math.MaxUint64})
	eventually(t, "log without what was deleted", func() bool { return logEntries(t, s) == 1 })
	if n := s.view.Load().items.Len(); n != 1 {
		t.Errorf("%d keys in the index, want 1", n)
	}
}

// TestHistoryMemory: what only memory holds has a bound of its own.
func TestHistoryMemory(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.HistoryMemory = 100_000
	s, _ := start(t, cfg)
	for range 300 {
		put(t, s, "/registry/leases/kube-system/x", strings.Repeat("x", 1000))
		put(t, s, "/registry/pods/x", strings.Repeat("x", 1000))
	}
	eventually(t, "history within its bound", func() bool {
		n := 0
		for _, e := range s.view.Load().history {
			if e.memory {
				n += int(e.size)
			}
		}
		return n <= 110_000
	})
}

// logEntries counts the records on disk.
func logEntries(t *testing.T, s *Store) int {
	t.Helper()
	iter, err := s.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ok := iter.First(); ok; ok = iter.Next() {
		if iter.Key()[0] == logPrefix {
			n++
		}
	}
	if err := iter.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStreamHoldsItsView: compaction and writes do not disturb a read under
// way.
func TestStreamHoldsItsView(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.RecentBytes = 1
	s, _ := start(t, cfg)
	const n = 2*chunkKeys + 100
	for i := range n {
		put(t, s, fmt.Sprintf("/a/%05d", i), "old")
	}
	at := s.Revision()
	got, chunks := 0, 0
	err := s.RangeStream(t.Context(), RangeRequest{Key: []byte("/a/"), End: []byte("/a0")}, func(r RangeResult) error {
		if chunks++; chunks == 1 {
			for i := range n {
				put(t, s, fmt.Sprintf("/a/%05d", i), "new")
			}
			if err := s.Compact(t.Context(), s.Revision()); err != nil {
				t.Error(err)
			}
			put(t, s, "/b", "") // the committer has had time to trim
		}
		for _, kv := range r.KVs {
			if string(kv.Key) != fmt.Sprintf("/a/%05d", got) || string(kv.Value) != "old" || kv.ModRevision > at {
				t.Fatalf("key %d is %s = %s at %d", got, kv.Key, kv.Value, kv.ModRevision)
			}
			got++
		}
		if r.Revision != at || (r.Count != 0) != (got == n) {
			t.Errorf("chunk %d at %d counts %d", chunks, r.Revision, r.Count)
		}
		return nil
	})
	if err != nil || got != n || chunks != 3 {
		t.Errorf("%d keys in %d chunks, %v", got, chunks, err)
	}
	eventually(t, "compaction goes on after the read", func() bool { return logEntries(t, s) == n+1 })
}

// TestProgressInOrder asks for progress all through a storm: a batch up to a
// revision must be the last to tell of changes up to it.
func TestProgressInOrder(t *testing.T) {
	cfg := testConfig(t)
	cfg.WatchEvents = 20
	s, _ := start(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var acked atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			for n := range 400 {
				rev := put(t, s, fmt.Sprintf("/registry/%s/%d", []string{"pods", "events"}[n%2], i), fmt.Sprint(n))
				acked.Store(rev)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			at := s.Revision()
			_ = s.Compact(ctx, at-1<<40)
			res, err := s.Range(ctx, RangeRequest{Key: []byte("/registry/"), End: []byte("/registry0"), Revision: at})
			if err == nil && res.Revision < at {
				t.Errorf("read at %d of a store at %d", at, res.Revision)
			}
			runtime.Gosched()
		}
	})
	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() { readInOrder(t, s, i, 400) })
	}
	readers.Wait()
	cancel()
	wg.Wait()
}

func readInOrder(t *testing.T, s *Store, seed, n int) {
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	key := []byte(fmt.Sprintf("/registry/pods/%d", seed))
	w, err := s.Watch(t.Context(), WatchRequest{Key: key})
	if err != nil {
		t.Error(err)
		return
	}
	defer w.Close()
	var told int64
	version := int64(-1)
	w.Progress()
	for b := range w.Events() {
		for _, e := range b.Events {
			if e.KV.ModRevision <= told || e.KV.ModRevision > b.Revision {
				t.Errorf("event at %d in a batch to %d, told of all to %d", e.KV.ModRevision, b.Revision, told)
			}
			if version >= 0 && e.KV.Version != version+1 {
				t.Errorf("version %d after %d", e.KV.Version, version)
			}
			version = e.KV.Version
		}
		if b.Revision < told {
			t.Errorf("batch to %d after one to %d", b.Revision, told)
		}
		told = b.Revision
		if version == int64(n/2) {
			return
		}
		for range rng.IntN(50) {
			runtime.Gosched()
		}
		w.Progress()
	}
	t.Errorf("watcher ended: %v", w.Err())
}

func TestFutureWatch(t *testing.T) {
	s, _ := start(t, testConfig(t))
	rev := put(t, s, "/a", "1")
	w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/a"), StartRevision: rev + 1<<50})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	put(t, s, "/a", "2")
	w.Progress()
	if b := <-w.Events(); len(b.Events) != 0 || b.Revision != s.Revision() {
		t.Errorf("got %+v, want progress alone", b)
	}
}

// TestNothingStays: a closed store leaves no goroutine, and its watchers and
// callers learn of it.
func TestNothingStays(t *testing.T) {
	before := runtime.NumGoroutine()
	cfg := testConfig(t)
	s, stop := start(t, cfg)
	var watchers []*Watcher
	for range 10 {
		w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/a")})
		if err != nil {
			t.Fatal(err)
		}
		watchers = append(watchers, w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone, err := s.Watch(ctx, WatchRequest{Key: []byte("/a")})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range gone.Events() {
		t.Error("event of a cancelled watch")
	}
	if !errors.Is(gone.Err(), context.Canceled) {
		t.Errorf("cancelled watch ended with %v", gone.Err())
	}
	watchers[0].Close()
	put(t, s, "/a", "never read")
	stop()
	for i, w := range watchers {
		for range w.Events() { //nolint:revive // drains
		}
		if want := map[bool]error{true: nil, false: ErrClosed}[i == 0]; !errors.Is(w.Err(), want) {
			t.Errorf("watcher %d ended with %v, want %v", i, w.Err(), want)
		}
	}
	if err := tryPut(t, s, "/a", "x"); !errors.Is(err, ErrClosed) {
		t.Errorf("put: %v", err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("run: %v", err)
	}
	if _, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/a")}); !errors.Is(err, ErrClosed) {
		t.Errorf("watch: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	eventually(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}
