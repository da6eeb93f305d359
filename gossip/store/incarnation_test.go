package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/crdt"
)

func TestIncarnation(t *testing.T) {
	cfg := testConfig(t)
	s, stop := start(t, cfg)
	first := s.Origin()
	put(t, s, "/registry/x", "1")
	vector := s.Vector()
	stop()
	s, stop = start(t, cfg)
	if s.Origin() != first {
		t.Error("a restart begins a new incarnation")
	}
	stop()

	copied := cfg
	copied.Dir = copyDir(t, cfg.Dir)
	s, stop = start(t, copied)
	if s.Origin() == first {
		t.Error("a copy goes on as the same incarnation")
	}
	if v := s.Vector(); !v.Includes(vector) {
		t.Errorf("a copy claims %v, want %v", v, vector)
	}
	put(t, s, "/registry/x", "2")
	if v := s.Vector(); v[first] != vector[first] || v[s.Origin()] <= vector[first] {
		t.Errorf("a copy that wrote claims %v", v)
	}
	stop()

	if err := NewIncarnation(cfg.FS, cfg.Dir); err != nil {
		t.Fatal(err)
	}
	s, stop = start(t, cfg)
	second := s.Origin()
	if second == first {
		t.Error("no new incarnation")
	}
	stop()
	given := cfg
	given.Fingerprint = "another machine"
	s, _ = start(t, given)
	if s.Origin() == second {
		t.Error("another fingerprint is the same incarnation")
	}
}

// TestRolledBack: a peer that knows more of this node's changes than the node
// itself shows that its data is an older copy. It goes on under another name.
func TestRolledBack(t *testing.T) {
	a, b := pair(t, nil)
	own := a.s.Origin()
	put(t, a.s, "/registry/x", "1")
	ahead := crdt.Put(nil, []byte("/registry/y"), []byte("lost here"), crdt.Dot{Origin: own, Seq: 1 << 40}, crdt.StampAt(time.Now()), crdt.Change{})
	if err := a.s.Apply(t.Context(), []*crdt.Record{ahead}, crdt.Vector{own: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	put(t, a.s, "/registry/z", "2")
	if a.s.Origin() == own {
		t.Fatal("the incarnation is the same")
	}
	if got := get(t, a.s, "/registry/y", 0); got != "lost here" {
		t.Errorf("what the peer had is %s", got)
	}
	if v := a.s.Vector(); v[own] != 1<<40 || v[a.s.Origin()] == 0 {
		t.Errorf("vector %v", v)
	}
	a.stop()
	a.open()
	a.hangUp(b)
	b.settle()
	b.check()
}

// TestPutBack: the disk of a machine is put back to what it was, which shows
// nowhere on it, and the machine writes before it hears of anybody. The others have
// what it lost and take what it writes now for something else.
func TestPutBack(t *testing.T) {
	for name, lost := range map[string]int{"with dots to spare": 20, "with dots used again": sequenceReserve + 2000} {
		for _, written := range []int{1, 3, sequenceReserve} {
			t.Run(fmt.Sprintf("%s, %d written", name, written), func(t *testing.T) {
				a, b := pair(t, withRunFile(t))
				own := a.s.Origin()
				put(t, a.s, "/registry/x/before", "x")
				a.settle()
				before := a.fs.CrashClone(vfs.CrashCloneCfg{})
				a.reopen(false)
				putMany(t, a.s, "/registry/lost/", lost)
				a.settle()
				if a.s.Origin() != own {
					t.Error("a new store, or the same boot, is in doubt")
				}
				a.stop()
				a.fs = before
				a.reopen(true)
				putMany(t, a.s, "/registry/new/", written)
				a.settle()
				a.check()
				for key, n := range map[string]int{"/registry/lost/": lost, "/registry/new/": written} {
					if got := countKeys(t, b.s, key); got != n {
						t.Errorf("%d keys below %s, want %d", got, key, n)
					}
				}
				second := a.s.Origin()
				a.reopen(true)
				if got := a.s.Origin(); got != second {
					t.Errorf("incarnation %s, want %s until it writes", got, second)
				}
				if err := a.s.Trust(t.Context()); err != nil {
					t.Fatal(err)
				}
				a.reopen(false)
				put(t, a.s, "/registry/x/after", "x")
				if got := a.s.Origin(); got != second {
					t.Errorf("incarnation %s, though all were asked, want %s", got, second)
				}
			})
		}
	}
}

// TestCopiedBackInPlace: a copy of the directory is put back over it while the machine
// runs, so that the files are the same ones.
func TestCopiedBackInPlace(t *testing.T) {
	cfg := testConfig(t)
	withRunFile(t)(&cfg)
	s, stop := start(t, cfg)
	put(t, s, "/registry/x/before", "x")
	stop()
	copied := copyDir(t, cfg.Dir)
	s, stop = start(t, cfg)
	own := s.Origin()
	put(t, s, "/registry/x/lost", "x")
	if s.Origin() != own {
		t.Error("a daemon that starts again is in doubt")
	}
	stop()
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(cfg.Dir, "log"), os.DirFS(filepath.Join(copied, "log"))); err != nil {
		t.Fatal(err)
	}
	mark, err := os.ReadFile(filepath.Join(copied, "MARK"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "MARK"), mark, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = start(t, cfg)
	put(t, s, "/registry/x/new", "x")
	if s.Origin() == own {
		t.Errorf("another change has the dot %s.%d", own, s.Vector()[own])
	}
}

// withRunFile gives each store a file of its run.
func withRunFile(t *testing.T) func(*Config) {
	return func(cfg *Config) { cfg.RunFile = filepath.Join(t.TempDir(), "run") }
}

// reopen stops the store, unless that has happened, and opens it, after a boot of the
// machine or not. Nobody is connected with it.
func (r *replica) reopen(boot bool) {
	r.t.Helper()
	for _, other := range r.replicas {
		r.hangUp(other)
		other.hangUp(r)
	}
	r.stop()
	if boot {
		if err := os.Remove(r.cfg.RunFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.t.Fatal(err)
		}
	}
	r.open()
}

// TestConvergeInDoubt: random histories in which machines are booted, and now and
// then with the disk of some time ago.
func TestConvergeInDoubt(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := newCluster(t, seed, 3, withRunFile(t))
			for i := range 5 {
				c.keys = append(c.keys, fmt.Sprint("/registry/configmaps/", i), fmt.Sprint("/registry/leases/x/", i))
			}
			images := make([]*vfs.MemFS, 3)
			for range 300 {
				c.step()
				r := c.replicas[c.rng.IntN(3)]
				switch d := c.rng.IntN(40); {
				case d == 0:
					images[r.id] = r.fs.CrashClone(vfs.CrashCloneCfg{})
				case d == 1 && images[r.id] != nil && r.s.Owed() == nil:
					r.drain()
					r.stop()
					r.fs, images[r.id] = images[r.id], nil
					r.reopen(c.rng.IntN(2) == 0)
				case d == 2:
					r.drain()
					r.reopen(true)
				case d == 3:
					c.settle()
					if err := r.s.Trust(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.settle()
			c.acked = nil // what a disk that was put back had alone is gone
			c.check()
			for _, r := range c.replicas {
				if len(r.s.Beyond()) > 0 {
					t.Errorf("replica %d has %v beyond what it includes", r.id, r.s.Beyond())
				}
			}
		})
	}
}

func configMap(a string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"u"},"data":{"a":%q}}`, a)
}

func putMany(t *testing.T, s *Store, prefix string, n int) {
	t.Helper()
	var group errgroup.Group
	group.SetLimit(64)
	for i := range n {
		group.Go(func() error { return tryPut(t, s, fmt.Sprint(prefix, i), "x") })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func countKeys(t *testing.T, s *Store, prefix string) int {
	t.Helper()
	r, err := s.Range(t.Context(), RangeRequest{Key: []byte(prefix), End: []byte(prefix + "\xff"), CountOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	return int(r.Count)
}
