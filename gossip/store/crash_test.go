package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// written is what one writer did: values in order, the last of which may not
// have been acknowledged.
type written struct {
	mu    sync.Mutex
	acked map[string]string
	rev   int64 // highest acknowledged
}

func (w *written) snapshot() (map[string]string, int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.acked), w.rev
}

// TestPowerLoss takes the power away at random moments of a write storm, with
// a random part of what was not synced on disk. All that was acknowledged must
// be there, and no revision or sequence may come twice, although the clock is
// set back.
func TestPowerLoss(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t)
	cfg.MemTableBytes = 64 << 10 // many flushes
	cfg.HistoryEntries = 300     // many compactions
	cfg.FS = fs
	s, _ := start(t, cfg)

	const writers = 4
	w := &written{acked: map[string]string{}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key, value := fmt.Sprintf("/registry/pods/%d-%d", i, n%20), fmt.Sprintf("%d %0500d", n, n)
				if n%7 == 0 {
					key = fmt.Sprintf("/registry/events/%d", i)
				}
				rev := put(t, s, key, value)
				w.mu.Lock()
				if n%7 != 0 {
					w.acked[key] = value
				}
				w.rev = max(w.rev, rev)
				w.mu.Unlock()
			}
		})
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i := range 25 {
		n := int64(rng.IntN(400))
		from := s.Revision()
		eventually(t, "some writes", func() bool { return s.Revision() > from+n<<16 })
		acked, rev := w.snapshot()
		seq := s.durableSeq()
		crashed := fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: rng.IntN(101),
			RNG:                 rng,
		})
		checkCrashed(t, i, cfg, crashed, acked, rev, seq)
	}
	close(stop)
	wg.Wait()
}

// durableSeq returns the highest sequence among the visible durable changes.
func (s *Store) durableSeq() uint64 {
	v := s.view.Load()
	var seq uint64
	v.items.Ascend(func(it *item) bool {
		if n := it.newest(); n.rec == nil {
			seq = max(seq, n.dot.Seq)
		}
		return true
	})
	return seq
}

func checkCrashed(t *testing.T, i int, cfg Config, fs *vfs.MemFS, acked map[string]string, rev int64, seq uint64) {
	t.Helper()
	cfg.FS = fs
	cfg.Now = func() time.Time { return time.Now().Add(-24 * time.Hour) }
	s, stop := start(t, cfg)
	defer stop()
	if s.Revision() <= rev {
		t.Errorf("crash %d: revision %d may be issued again after %d", i, s.Revision(), rev)
	}
	for key, value := range acked {
		got := get(t, s, key, 0)
		var n, m int
		if _, err := fmt.Sscan(got, &n); err != nil {
			t.Errorf("crash %d: %s was lost", i, key)
			continue
		}
		if _, err := fmt.Sscan(value, &m); err != nil || n < m {
			t.Errorf("crash %d: %s went back from %d to %d", i, key, m, n)
		}
	}
	// The history is whole: versions of a key that are still there follow on.
	v := s.view.Load()
	v.items.Ascend(func(it *item) bool {
		for j := 1; j < len(it.versions); j++ {
			if a, b := it.versions[j-1], it.versions[j]; !b.deleted && b.version != a.version+1 {
				t.Errorf("crash %d: %s has version %d after %d", i, it.key, b.version, a.version)
			}
		}
		return true
	})
	put(t, s, "/registry/pods/after", "works")
	if n := s.durableSeq(); n <= seq {
		t.Errorf("crash %d: sequence %d was issued again, %d was visible before", i, n, seq)
	}
}

// TestCrashLoop crashes again and again; revisions must not run away from the
// wall clock.
func TestCrashLoop(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t)
	var rev int64
	for range 50 {
		cfg.FS = fs
		s, stop := start(t, cfg)
		if s.Revision() <= rev {
			t.Fatalf("revision %d after %d", s.Revision(), rev)
		}
		rev = put(t, s, "/registry/events/a", "x")
		rev = max(rev, put(t, s, "/registry/pods/a", "x"))
		fs = fs.CrashClone(vfs.CrashCloneCfg{})
		stop()
	}
	cfg.FS = fs
	s, _ := start(t, cfg)
	ahead := time.Until(crdt.Revision(s.Revision()).Time())
	if limit := cfg.RevisionReserve + 60*aheadReserve; ahead > limit {
		t.Errorf("revisions are %v ahead after 50 crashes, at most %v is fine", ahead, limit)
	}
}

// TestCleanRestarts: a clean stop gives back what was reserved.
func TestCleanRestarts(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	for range 5 {
		s, stop := start(t, cfg)
		put(t, s, "/registry/pods/a", "x")
		if ahead := time.Until(crdt.Revision(s.Revision()).Time()); ahead > time.Second {
			t.Fatalf("revisions are %v ahead after clean stops", ahead)
		}
		stop()
	}
}
