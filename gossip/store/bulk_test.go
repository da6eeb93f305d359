package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// sent returns the frames that bring a new replica what count objects of about
// 4 KB are.
func sent(t *testing.T, count int) []Frame {
	t.Helper()
	from, _ := start(t, testConfig(t))
	value := strings.Repeat("x", 4000)
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for i := w; i < count; i += 8 {
				put(t, from, fmt.Sprintf("/registry/configmaps/default/%05d", i), fmt.Sprint(i, value))
			}
		})
	}
	group.Wait()
	tail, err := from.Tail(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var all []Frame
	for seen := (crdt.Vector{}); !seen.Includes(from.Vector()); {
		f, err := tail.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
		seen.Join(f.Vector)
	}
	return all
}

// copies returns records that a store may number as its own.
func copies(records []*crdt.Record) []*crdt.Record {
	all := make([]*crdt.Record, len(records))
	for i, r := range records {
		c := *r
		all[i] = &c
	}
	return all
}

// TestBulkGoesInAsTables: what a peer sends in bulk does not go through the
// journal, and is there after a restart.
func TestBulkGoesInAsTables(t *testing.T) {
	frames := sent(t, 2000)
	cfg := testConfig(t)
	cfg.RecentBytes = 1
	s, stop := start(t, cfg)
	put(t, s, "/registry/pods/before", "own")
	for _, f := range frames {
		if err := s.Apply(t.Context(), copies(f.Records), f.Vector); err != nil {
			t.Fatal(err)
		}
		put(t, s, "/registry/pods/between", "own")
	}
	m := s.db.Metrics()
	tables, tableBytes := uint64(0), uint64(0)
	for _, l := range m.Levels {
		tables += l.TablesIngested
		tableBytes += l.TableBytesIngested
	}
	if tables < uint64(len(frames))-1 || m.WAL.BytesWritten > 1<<20 {
		t.Errorf("%d tables of %d bytes taken in for %d frames, %d bytes went to the journal", tables, tableBytes, len(frames), m.WAL.BytesWritten)
	}
	digest, vector, rev := s.Digest(), s.Vector(), s.Revision()
	stop()
	s, _ = start(t, cfg)
	if s.Digest() != digest || !s.Vector().Includes(lasting(vector)) || s.Revision() < rev {
		t.Errorf("after a restart digest %v, vector %v, revision %d; before %v, %v, %d", s.Digest(), s.Vector(), s.Revision(), digest, vector, rev)
	}
	if got := get(t, s, "/registry/configmaps/default/01999", 0); !strings.HasPrefix(got, "1999x") {
		t.Errorf("an object reads %.20q", got)
	}
}

// TestBulkKnownAlready: a table for which nothing is left leaves nothing.
func TestBulkKnownAlready(t *testing.T) {
	frames := sent(t, 600)
	cfg := testConfig(t)
	s, stop := start(t, cfg)
	for range 2 {
		for _, f := range frames {
			if err := s.Apply(t.Context(), copies(f.Records), f.Vector); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || bytes.Contains(fmt.Append(nil, left), []byte("BULK")) {
		t.Errorf("%v, %v are left", left, err)
	}
	stop()
	start(t, cfg)
}

// TestBulkPowerLoss takes the power away at random moments while tables are
// taken in, with a random part of what was not synced on disk. The store must
// open, have what it said it has, and take the rest.
func TestBulkPowerLoss(t *testing.T) {
	frames := sent(t, 3000)
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t)
	cfg.FS = fs
	cfg.HistoryEntries = 500 // revisions are removed meanwhile
	s, _ := start(t, cfg)
	var (
		mu      sync.Mutex
		applied int // frames, of all rounds
		own     int
	)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, f := range frames {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Apply(t.Context(), copies(f.Records), f.Vector); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				applied++
				mu.Unlock()
			}
			if err := s.Wipe(t.Context(), nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			put(t, s, "/moot/local/own", fmt.Sprint(i)) // a key that a wipe leaves
			mu.Lock()
			own = i
			mu.Unlock()
		}
	})
	rng := rand.New(rand.NewPCG(uint64(os.Getpid()), 0)) //nolint:gosec // a test's
	for i := range 15 {
		mu.Lock()
		want, from := own, applied
		mu.Unlock()
		n := rng.IntN(4)
		eventually(t, "some frames", func() bool { mu.Lock(); defer mu.Unlock(); return applied >= from+n })
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		checkBulkCrashed(t, i, cfg, crashed, frames, want)
	}
	close(stop)
	wg.Wait()
}

func checkBulkCrashed(t *testing.T, i int, cfg Config, fs *vfs.MemFS, frames []Frame, own int) {
	t.Helper()
	cfg.FS = fs
	s, stop := start(t, cfg)
	defer stop()
	var got int
	if _, err := fmt.Sscan(get(t, s, "/moot/local/own", 0), &got); err != nil && own > 0 || got < own {
		t.Errorf("crash %d: own write %d is %d: %v", i, own, got, err)
	}
	last, want := frames[len(frames)-1], int64(0)
	for _, f := range frames {
		want += int64(len(f.Records))
	}
	if s.Vector().Includes(last.Vector) && s.Digest().Keys < want {
		t.Errorf("crash %d: all is claimed and %d keys are there", i, s.Digest().Keys)
	}
	for _, f := range frames {
		if err := s.Apply(t.Context(), copies(f.Records), f.Vector); err != nil {
			t.Fatalf("crash %d: %v", i, err)
		}
	}
	if s.Digest().Keys != want {
		t.Errorf("crash %d: %d keys after all was applied again", i, s.Digest().Keys)
	}
}

// linkedFS tells when a table has been given its name in the log, and when it
// has been taken in.
type linkedFS struct {
	*vfs.MemFS
	linked, taken func()
}

func (fs *linkedFS) Unwrap() vfs.FS { return fs.MemFS }

func (fs *linkedFS) Link(from, to string) error {
	err := fs.MemFS.Link(from, to)
	if strings.Contains(from, "BULK") {
		fs.linked()
	}
	return err
}

func (fs *linkedFS) Remove(name string) error {
	if _, err := fs.Stat(name); err == nil && strings.Contains(name, "BULK") {
		fs.taken()
	}
	return fs.MemFS.Remove(name)
}

// TestBulkCutShort takes the power away between the steps of taking a table in.
func TestBulkCutShort(t *testing.T) {
	frames := sent(t, 600)
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprint("taken=", taken), func(t *testing.T) {
			fs := &linkedFS{MemFS: vfs.NewCrashableMem(), linked: func() {}, taken: func() {}}
			var crashed *vfs.MemFS
			var once sync.Once
			crash := func() { once.Do(func() { crashed = fs.CrashClone(vfs.CrashCloneCfg{}) }) }
			if taken {
				fs.taken = crash
			} else {
				fs.linked = crash
			}
			cfg := testConfig(t)
			cfg.FS = fs
			s, stop := start(t, cfg)
			for _, f := range frames {
				if err := s.Apply(t.Context(), copies(f.Records), f.Vector); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if crashed == nil {
				t.Fatal("no table was taken in")
			}
			again := cfg
			again.FS = crashed
			s, _ = start(t, again)
			if n := s.Digest().Keys; n > 0 || len(s.Vector()) > 0 {
				t.Errorf("%d keys of a batch that is not whole are there, %v is included", n, s.Vector())
			}
			checkBulkCrashed(t, 0, cfg, crashed.CrashClone(vfs.CrashCloneCfg{}), frames, 0)
		})
	}
}
