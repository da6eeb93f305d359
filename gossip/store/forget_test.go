package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// later returns a change of configuration that lets a test move the clocks.
func later(ahead *atomic.Int64) func(*Config) {
	return func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } }
}

// bury compacts until the history is trimmed and the tombstones that may go are gone.
func (r *replica) bury(left int) {
	r.t.Helper()
	r.watch.Close()
	put(r.t, r.s, fmt.Sprint("/registry/busy/", r.id), "x") // the compaction gets beyond the last delete
	r.follow()
	r.compact()
	eventually(r.t, fmt.Sprint("a trimmed history, ", left, " tombstones"), func() bool {
		v := r.s.view.Load()
		return (len(v.history) == 0 || v.history[0].rev >= v.floor) && tombstones(r.s) == left
	})
}

// TestTombstones: deletes stay until all have them, or for a bounded time, also
// through restarts.
func TestTombstones(t *testing.T) {
	var ahead atomic.Int64
	a, b := pair(t, later(&ahead))
	for _, key := range []string{"/registry/pods/a", "/registry/events/a", "/registry/leases/x/a"} {
		put(t, a.s, key, "x")
		del(t, a.s, key)
	}
	a.bury(3)
	ahead.Add(int64(eventTombstoneKeep + time.Minute))
	a.bury(2)
	b.pull(a)
	a.s.SetStable(crdt.Vector{1: 1})
	a.bury(2)
	a.restart() // memory goes
	a.bury(1)
	for b.pull(a) {
	}
	a.s.SetStable(b.s.Vector())
	a.bury(0)
	put(t, a.s, "/registry/pods/a", "x")
	del(t, a.s, "/registry/pods/a")
	a.bury(1)
	ahead.Add(int64(a.cfg.TombstoneKeep + 2*a.cfg.RevisionReserve)) // which a crash skips
	a.bury(0)
	a.restart() // which may take back that they went, but not for good
	a.bury(0)
}

// apart returns three replicas, the last of which was cut off for so long that
// the first two have forgotten what they deleted meanwhile. They settled with
// /registry/x/0 to 9; then the first deleted 0 to 4, and the last wrote.
func apart(t *testing.T) *cluster {
	var ahead atomic.Int64
	c := newCluster(t, 1, 3, later(&ahead))
	a, b, away := c.replicas[0], c.replicas[1], c.replicas[2]
	for i := range 10 {
		put(t, a.s, fmt.Sprint("/registry/x/", i), fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"%d"},"data":{"a":"0"}}`, i))
	}
	c.settle()
	for _, r := range c.replicas {
		r.hangUp(away)
		away.hangUp(r)
	}
	for i := range 5 {
		del(t, a.s, fmt.Sprint("/registry/x/", i))
	}
	put(t, a.s, "/registry/y", "here")
	for b.pull(a) || a.pull(b) {
	}
	ahead.Add(int64(a.cfg.TombstoneKeep + 2*a.cfg.RevisionReserve))
	for _, r := range []*replica{a, b} {
		r.bury(0)
	}
	put(t, away.s, "/registry/x/0", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"0"},"data":{"a":"1"}}`)
	put(t, away.s, "/registry/x/9", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"9"},"data":{"a":"1"}}`)
	put(t, away.s, "/registry/z", "there")
	return c
}

// TestForgotten: a replica that was away for too long is refused, wiped and
// bootstrapped. What it wrote alone is kept, and what was deleted stays so.
func TestForgotten(t *testing.T) {
	c := apart(t)
	a, b, away := c.replicas[0], c.replicas[1], c.replicas[2]
	if _, err := a.s.Tail(t.Context(), away.s.Vector()); !errors.Is(err, ErrForgotten) {
		t.Fatalf("tail for one that was away: %v", err)
	}
	claimed := away.s.Vector()
	if err := away.s.Wipe(t.Context(), a.s.Vector()); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-away.watch.Events(); ok {
		t.Error("a watcher goes on after the wipe")
	}
	if err := away.watch.Err(); !errors.Is(err, ErrCompacted) {
		t.Errorf("watcher ended with %v", err)
	}
	away.watch.Close()
	if v := away.s.Vector(); len(v) != 0 {
		t.Errorf("a wiped replica claims %v", v)
	}
	for key, want := range map[string]string{"/registry/x/5": "<none>", "/registry/z": "<none>"} {
		if got := get(t, away.s, key, 0); got != want {
			t.Errorf("after the wipe %s is %s, want %s", key, got, want)
		}
	}
	away.follow()
	away.restart()
	for away.pull(a) {
	}
	if v := away.s.Vector(); !v.Includes(lasting(claimed)) || !v.Includes(lasting(a.s.Vector())) {
		t.Errorf("bootstrapped, it claims %v, before %v", v, claimed)
	}
	c.settle()
	c.check()
	for key, want := range map[string]string{"/registry/x/0": "<none>", "/registry/x/1": "<none>", "/registry/y": "here", "/registry/z": "there"} {
		if got := get(t, b.s, key, 0); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	if got := get(t, b.s, "/registry/x/9", 0); got == "<none>" || uidOf([]byte(got)) != "9" {
		t.Errorf("what was updated alone is %s", got)
	}
}

// TestWipedRefusesItsFormerSide: the history of a wiped and filled replica begins
// with what its former peers have, and tells nothing of the deletes that were
// forgotten on the other side. They must not go on with it.
func TestWipedRefusesItsFormerSide(t *testing.T) {
	c := apart(t)
	a, b, away := c.replicas[0], c.replicas[1], c.replicas[2]
	wipe := func(covered crdt.Vector) {
		t.Helper()
		b.hangUp(a)
		b.hangUp(away)
		if err := b.s.Wipe(t.Context(), covered); err != nil {
			t.Fatal(err)
		}
		b.watch.Close()
		b.follow()
	}
	wipe(nil)
	for b.pull(away) {
	}
	wipe(a.s.Vector())
	early, err := b.s.Tail(t.Context(), away.s.Vector())
	if err != nil {
		t.Fatalf("tail of one that is not filled yet: %v", err)
	}
	defer early.Close()
	for b.pull(a) {
		if _, _, err = early.poll(); err != nil {
			break
		}
	}
	for b.pull(a) {
	}
	if _, _, again := early.poll(); !errors.Is(errors.Join(err, again), ErrForgotten) {
		t.Errorf("tail from before it was filled: %v, %v", err, again)
	}
	for range 2 {
		if _, err := b.s.Tail(t.Context(), away.s.Vector()); !errors.Is(err, ErrForgotten) {
			t.Errorf("tail for one of its former side: %v", err)
		}
		b.restart()
	}
}

// TestForgottenIsInherited: a replica that got everything in one cut knows as
// little of forgotten deletes as the one that sent it, and refuses the same.
func TestForgottenIsInherited(t *testing.T) {
	c := apart(t)
	a, b, away := c.replicas[0], c.replicas[1], c.replicas[2]
	b.hangUp(a)
	if err := b.s.Wipe(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b.watch.Close()
	b.follow()
	for b.pull(a) {
	}
	if b.s.Digest() != a.s.Digest() {
		t.Errorf("bootstrapped, its digest is %s, want %s", b.s.Digest(), a.s.Digest())
	}
	for range 2 {
		if _, err := b.s.Tail(t.Context(), away.s.Vector()); !errors.Is(err, ErrForgotten) {
			t.Fatalf("tail for one that was away: %v", err)
		}
		b.restart()
	}
	if tail, err := b.s.Tail(t.Context(), nil); err != nil {
		t.Errorf("tail for a new replica: %v", err)
	} else {
		tail.Close()
	}
}

// TestForgottenStaysDeleted: an update that was made apart from a delete that
// is forgotten by now does not bring the object back, where it arrives.
func TestForgottenStaysDeleted(t *testing.T) {
	c := apart(t)
	a, away := c.replicas[0], c.replicas[2]
	for a.pull(away) {
	}
	a.drain()
	if got := get(t, a.s, "/registry/x/0", 0); got != "<none>" {
		t.Errorf("what was deleted is back: %s", got)
	}
	if got := get(t, a.s, "/registry/z", 0); got != "there" {
		t.Errorf("what was new is %s", got)
	}
}

// TestAsideOfSeveralWipes: what was set aside by one wipe stays when another one
// sets more aside after a restart, which forgets what only memory held of it.
func TestAsideOfSeveralWipes(t *testing.T) {
	c := newCluster(t, 1, 1, nil)
	a := c.replicas[0]
	there := crdt.Vector{1: 1} // what a peer has, and this replica had not
	put(t, a.s, "/registry/leases/x/a", "x")
	for i := range 3 {
		put(t, a.s, fmt.Sprint("/registry/x/", i), "x")
		if err := a.s.Wipe(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		a.watch.Close()
		a.follow()
		a.restart()
	}
	if err := a.s.GiveUpOwed(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if got := get(t, a.s, fmt.Sprint("/registry/x/", i), 0); got != "x" {
			t.Errorf("what wipe %d set aside is %s", i, got)
		}
	}
}

// TestMemoryComesBack: a restart forgets what only memory held; the peers still
// have it, also what the restarted one wrote itself.
func TestMemoryComesBack(t *testing.T) {
	a, b := pair(t, nil)
	put(t, a.s, "/registry/leases/x/a", "mine")
	put(t, b.s, "/registry/events/b", "theirs")
	a.settle()
	_, before := a.s.Origins()
	a.restart()
	if _, after := a.s.Origins(); after == before || a.s.Vector()[before] != 0 {
		t.Fatalf("memory goes on as %s after %s, claiming %v", after, before, a.s.Vector())
	}
	if got := get(t, a.s, "/registry/leases/x/a", 0); got != "<none>" {
		t.Fatalf("memory survived: %s", got)
	}
	a.settle()
	a.check()
	if got := get(t, a.s, "/registry/leases/x/a", 0); got != "mine" {
		t.Errorf("what came back is %s", got)
	}
}

// TestPowerLossWhileApplying takes the power away from a replica at random
// moments while it applies. Its vector must never claim what it lost.
func TestPowerLossWhileApplying(t *testing.T) {
	c := newCluster(t, 1, 2, func(cfg *Config) {
		cfg.MemTableBytes = 64 << 10 // many flushes
		cfg.HistoryEntries = 300     // many compactions
	})
	a, b := c.replicas[0], c.replicas[1]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := tryPut(t, a.s, fmt.Sprint("/registry/pods/", n%50), fmt.Sprintf("%d %0500d", n, n)); err != nil {
				t.Error(err)
				return
			}
			if n%5 == 0 {
				_, _ = a.s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpDelete, Key: fmt.Append(nil, "/registry/pods/", n%50)}}})
			}
		}
	}()
	rng := rand.New(rand.NewPCG(1, 1))
	crash := func(i int) {
		acked := b.s.Vector()
		cfg := b.cfg
		cfg.FS = b.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		s, stop := start(t, cfg)
		defer stop()
		if !s.Vector().Includes(lasting(acked)) {
			t.Errorf("crash %d: claims %v, was at %v", i, s.Vector(), acked)
		}
		checkClaims(t, i, s, a.s)
	}
	for i := range 300 {
		if f, _, err := b.tail(a).poll(); err != nil {
			t.Fatal(err)
		} else if f.Vector != nil || f.Cut {
			applied := make(chan error, 1)
			go func() { applied <- b.s.Apply(t.Context(), f.Records, f.Vector) }()
			if i%20 == 0 {
				crash(i)
			}
			if err := <-applied; err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	<-done
}

// checkClaims makes sure that s has every key of from that it claims to have.
func checkClaims(t *testing.T, i int, s, from *Store) {
	t.Helper()
	claims := s.Vector()
	from.view.Load().items.Ascend(func(it *item) bool {
		if !classOf(it.key).counted() || !claims.Covers(it.newest().dot) {
			return true
		}
		mine, ok := s.view.Load().items.Get(&item{key: it.key})
		if !ok {
			t.Errorf("crash %d: %s is claimed and not there", i, it.key)
			return true
		}
		r, err := s.record(mine.newest())
		if err != nil || !r.Covers(it.newest().dot) {
			t.Errorf("crash %d: %s is at %v, %v, without the change %s that is claimed", i, it.key, r, err, it.newest().dot)
		}
		return true
	})
}

// TestForgottenIsOutOfHistory: a delete is not forgotten while the history, which
// is trimmed in steps, still tells of it. A peer that goes on with that history
// would pass over the delete and take itself to include it.
func TestForgottenIsOutOfHistory(t *testing.T) {
	var ahead atomic.Int64
	a, b := pair(t, later(&ahead))
	put(t, a.s, "/registry/x", "there")
	put(t, a.s, "/registry/y", "x")
	for b.pull(a) {
	}
	b.hangUp(a)
	a.compact()
	eventually(t, "the create to be trimmed", func() bool { return len(a.s.view.Load().history) == 1 })
	del(t, a.s, "/registry/x")
	put(t, a.s, "/registry/z", "x")
	ahead.Add(int64(a.cfg.TombstoneKeep + 2*a.cfg.RevisionReserve))
	var f Frame
	err := a.s.submit(t.Context(), &request{do: func(c *committer, _ *batch) error {
		c.setFloor(c.head.rev)
		a.s.view.Store(c.freeze())
		c.trim(1)
		c.bury()
		a.s.view.Store(c.freeze())
		tail, err := a.s.Tail(t.Context(), b.s.Vector())
		if err != nil {
			return err
		}
		defer tail.Close()
		f, _, err = tail.poll()
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.s.Apply(t.Context(), f.Records, f.Vector); err != nil {
		t.Fatal(err)
	}
	if got := get(t, b.s, "/registry/x", 0); got != "<none>" {
		t.Errorf("what was deleted is %s for one that includes %s", got, b.vector(b.s.Vector()))
	}
}
