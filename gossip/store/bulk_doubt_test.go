package store

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// bulkFrame is what b has for a, as one frame that a takes in with a table.
func bulkFrame(t *testing.T, a, b *replica) Frame {
	t.Helper()
	for i := range 3 {
		put(t, b.s, fmt.Sprint("/registry/configmaps/big", i), strings.Repeat("x", 900<<10))
	}
	a.hangUp(b)
	b.hangUp(a)
	f, _, err := a.tail(b).poll()
	a.hangUp(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// cutShort opens a, and keeps what is on its disk when a table has been taken in and
// the rest of the batch has not.
func cutShort(t *testing.T, a *replica) (s *Store, crash func()) {
	t.Helper()
	var crashed *vfs.MemFS
	fs := &linkedFS{MemFS: a.fs, linked: func() {}, taken: func() {}}
	a.stop()
	a.cfg.FS = fs
	s, stop := start(t, a.cfg)
	fs.taken = sync.OnceFunc(func() { crashed = a.fs.CrashClone(vfs.CrashCloneCfg{}) })
	return s, func() {
		t.Helper()
		stop()
		if crashed == nil {
			t.Fatal("no table was taken in")
		}
		a.fs = crashed
		a.reopen(true)
	}
}

func clearRun(t *testing.T, r *replica) {
	t.Helper()
	if err := os.Remove(r.cfg.RunFile); err != nil {
		t.Fatal(err)
	}
}

// TestBulkInDoubt: a replica in doubt, or one that is after its next boot, catches
// up with a table and writes a conflict meanwhile, its first change.
func TestBulkInDoubt(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprint("trusted=", trusted), func(t *testing.T) {
			a, b := pair(t, withRunFile(t))
			put(t, a.s, "/registry/configmaps/x", configMap("1"))
			a.settle()
			put(t, a.s, "/registry/configmaps/x", configMap("here"))
			put(t, b.s, "/registry/configmaps/x", configMap("there"))
			f := bulkFrame(t, a, b)
			clearRun(t, a)
			s, crash := cutShort(t, a)
			if trusted {
				if err := s.Trust(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
				t.Fatal(err)
			}
			crash()
			put(t, a.s, "/registry/configmaps/y", "x")
			a.settle()
			a.check()
			a.whole()
		})
	}
}

// whole checks that no replica has what it does not include.
func (c *cluster) whole() {
	c.t.Helper()
	for _, r := range c.replicas {
		v := r.s.Vector()
		r.s.view.Load().items.Ascend(func(it *item) bool {
			if d := it.newest().dot; !v.Covers(d) {
				c.t.Errorf("replica %d holds %s with %s, which nobody includes", r.id, it.key, r.dot(d))
			}
			return true
		})
		if len(r.s.Beyond()) > 0 {
			c.t.Errorf("replica %d has %v beyond what it includes", r.id, r.s.Beyond())
		}
	}
}

// TestBulkConflict: a replica joins an object that both sides of a cut edited while it
// takes in a table. The history is trimmed, so nobody else ever lists what lost.
func TestBulkConflict(t *testing.T) {
	a, b := pair(t, nil)
	put(t, a.s, "/registry/configmaps/x", configMap("1"))
	a.settle()
	put(t, a.s, "/registry/configmaps/x", configMap("here"))
	put(t, b.s, "/registry/configmaps/x", configMap("there"))
	a.bury(0)
	f := bulkFrame(t, a, b)
	s, crash := cutShort(t, a)
	if err := s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
		t.Fatal(err)
	}
	crash()
	a.settle()
	a.check()
	for _, r := range a.replicas {
		if all, err := r.s.Conflicts(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("replica %d lists %d conflicts, %v", r.id, len(all), err)
		}
	}
}

// TestBulkBetween: both sides of a cut made an object of one name. That the older
// takes the place of the other is two changes on the replica that takes in a table.
func TestBulkBetween(t *testing.T) {
	a, b := pair(t, nil)
	put(t, a.s, "/registry/configmaps/first", "x")
	a.settle()
	object := func(uid string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":%q}}`, uid)
	}
	put(t, b.s, "/registry/configmaps/x", object("there"))
	put(t, a.s, "/registry/configmaps/x", object("here"))
	f := bulkFrame(t, a, b)
	s, crash := cutShort(t, a)
	if err := s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
		t.Fatal(err)
	}
	crash()
	a.settle()
	a.check()
	for _, r := range a.replicas {
		if got := get(t, r.s, "/registry/configmaps/x", 0); got != object("there") {
			t.Errorf("replica %d has %s", r.id, got)
		}
	}
}

// TestBulkNamesIncarnation: the first local change in doubt, and a table with a change
// that is joined with it, are in one batch.
func TestBulkNamesIncarnation(t *testing.T) {
	a, b := pair(t, withRunFile(t))
	put(t, a.s, "/registry/configmaps/x", configMap("1"))
	a.settle()
	put(t, b.s, "/registry/configmaps/x", configMap("there"))
	f := bulkFrame(t, a, b)
	clearRun(t, a)
	s, crash := cutShort(t, a)
	var group sync.WaitGroup
	taken, first := make(chan struct{}), make(chan struct{})
	group.Go(func() {
		err := s.submit(t.Context(), &request{do: func(*committer, *batch) error { close(taken); <-first; return nil }})
		if err != nil {
			t.Error(err)
		}
	})
	<-taken
	group.Go(func() {
		if err := tryPut(t, s, "/registry/configmaps/x", configMap("here")); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "put is queued", func() bool { return len(s.queue) == 1 })
	group.Go(func() {
		if err := s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "frame is queued", func() bool { return len(s.queue) == 2 })
	close(first)
	group.Wait()
	crash()
	put(t, a.s, "/registry/configmaps/y", "x")
	a.settle()
	a.check()
	a.whole()
}
