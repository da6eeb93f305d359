package store

import (
	"fmt"
	"strings"
	"sync"
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
				a, b := pair(t, func(cfg *Config) { cfg.Boot = "first" })
				own := a.s.Origin()
				put(t, a.s, "/registry/x/before", "x")
				a.settle()
				before := a.fs.CrashClone(vfs.CrashCloneCfg{})
				a.reopen("first")
				putMany(t, a.s, "/registry/lost/", lost)
				a.settle()
				if a.s.Origin() != own {
					t.Error("a new store, or the same boot, is in doubt")
				}
				a.stop()
				a.fs = before
				a.reopen("second")
				putMany(t, a.s, "/registry/new/", written)
				a.settle()
				a.check()
				for key, n := range map[string]int{"/registry/lost/": lost, "/registry/new/": written} {
					if got := countKeys(t, b.s, key); got != n {
						t.Errorf("%d keys below %s, want %d", got, key, n)
					}
				}
				second := a.s.Origin()
				a.reopen("third")
				if got := a.s.Origin(); got != second {
					t.Errorf("incarnation %s, want %s until it writes", got, second)
				}
				if err := a.s.Trust(t.Context()); err != nil {
					t.Fatal(err)
				}
				a.reopen("third")
				put(t, a.s, "/registry/x/after", "x")
				if got := a.s.Origin(); got != second {
					t.Errorf("incarnation %s, though all were asked, want %s", got, second)
				}
			})
		}
	}
}

// reopen stops the store, unless that has happened, and opens it in a boot of the
// machine. Nobody is connected with it.
func (r *replica) reopen(boot string) {
	r.t.Helper()
	for _, other := range r.replicas {
		r.hangUp(other)
		other.hangUp(r)
	}
	r.stop()
	r.cfg.Boot = boot
	r.open()
}

// TestConvergeInDoubt: random histories in which machines are booted, and now and
// then with the disk of some time ago.
func TestConvergeInDoubt(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := newCluster(t, seed, 3, func(cfg *Config) { cfg.Boot = "0" })
			for i := range 5 {
				c.keys = append(c.keys, fmt.Sprint("/registry/configmaps/", i), fmt.Sprint("/registry/leases/x/", i))
			}
			images, boots := make([]*vfs.MemFS, 3), 0
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
					boots++
					r.reopen(fmt.Sprint(boots))
				case d == 2:
					boots++
					r.drain()
					r.reopen(fmt.Sprint(boots))
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

// TestBeyond: what a replica has of a frame that has not come to its end, or set
// aside, it does not include, but it says so to whoever wrote it.
func TestBeyond(t *testing.T) {
	a, b := pair(t, nil)
	own := a.s.Origin()
	putMany(t, a.s, "/registry/x/", 20)
	f, _, err := b.tail(a).poll()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.s.Apply(t.Context(), onWire(t, f.Records[:10]), nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := b.s.Beyond(); len(got) != 1 || got[own] != 10 || b.s.Vector()[own] != 0 {
			t.Errorf("beyond what it includes, %v, are %v, want 10", b.s.Vector(), got)
		}
		b.reopen("")
	}
	b.settle()
	if got := b.s.Beyond(); len(got) != 0 {
		t.Errorf("it includes all, and has %v beyond", got)
	}
	if err := b.s.Wipe(t.Context(), crdt.Vector{peerOrigin: 1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := b.s.Beyond()[own]; got != 20 {
			t.Errorf("set aside are changes up to %d, want 20", got)
		}
		b.reopen("")
	}
}

// TestBulkInDoubt: a replica in doubt, or one that is after its next boot, catches
// up with a table and writes a conflict meanwhile, its first change. The power goes
// when the table is in the log and the rest of the batch is not.
func TestBulkInDoubt(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprint("trusted=", trusted), func(t *testing.T) {
			a, b := pair(t, func(cfg *Config) { cfg.Boot = "first" })
			put(t, a.s, "/registry/configmaps/x", configMap("1"))
			a.settle()
			put(t, a.s, "/registry/configmaps/x", configMap("here"))
			put(t, b.s, "/registry/configmaps/x", configMap("there"))
			for i := range 3 {
				put(t, b.s, fmt.Sprint("/registry/configmaps/big", i), strings.Repeat("x", 900<<10))
			}
			var crashed *vfs.MemFS
			fs := &linkedFS{MemFS: a.fs, linked: func() {}, taken: func() {}}
			a.stop()
			a.cfg.FS, a.cfg.Boot = fs, "second"
			s, stop := start(t, a.cfg)
			if trusted {
				if err := s.Trust(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			fs.taken = sync.OnceFunc(func() { crashed = a.fs.CrashClone(vfs.CrashCloneCfg{}) })
			tail, err := b.s.Tail(t.Context(), s.Vector())
			if err != nil {
				t.Fatal(err)
			}
			f, _, err := tail.poll()
			tail.Close()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
				t.Fatal(err)
			}
			stop()
			if crashed == nil {
				t.Fatal("no table was taken in")
			}
			a.fs = crashed
			a.reopen("third")
			put(t, a.s, "/registry/configmaps/y", "x")
			a.settle()
			a.check()
			for _, r := range a.replicas {
				v := r.s.Vector()
				r.s.view.Load().items.Ascend(func(it *item) bool {
					if d := it.newest().dot; !v.Covers(d) {
						t.Errorf("replica %d holds %s with %s, which nobody includes", r.id, it.key, r.dot(d))
					}
					return true
				})
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
