package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// couple is two stores in a bubble; the first one's changes reach the second
// when exchange is called.
type couple struct {
	t        *testing.T
	a, b     *Store
	tail     *Tail
	fs       *watchedFS // of the second
	stopA    func()
	stopB    func()
	restartB func()
}

func newCouple(t *testing.T) *couple {
	t.Helper()
	open := func(fs vfs.FS) (*Store, func()) {
		cfg := DefaultConfig("store")
		cfg.FS = fs
		cfg.BallastBytes = 0
		cfg.Now = func() time.Time { return time.Now().AddDate(30, 0, 0) } // a bubble starts in 2000
		return startBubble(t, cfg)
	}
	c := &couple{t: t}
	fs := &watchedFS{FS: vfs.NewMem()}
	c.fs = fs
	c.a, c.stopA = open(vfs.NewMem())
	c.b, c.stopB = open(fs)
	c.restartB = func() {
		c.stopB()
		c.b, c.stopB = open(fs)
	}
	tail, err := c.a.Tail(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.tail = tail
	return c
}

func (c *couple) exchange() {
	c.t.Helper()
	for {
		f, _, err := c.tail.poll()
		if err != nil {
			c.t.Fatal(err)
		}
		if f.Vector == nil {
			return
		}
		if err := c.b.Apply(c.t.Context(), onWire(c.t, f.Records), f.Vector); err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestLeaseOutlivesItsNode: a lease runs out also where it was not granted, a
// little later, and no earlier than it was kept alive for.
func TestLeaseOutlivesItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		if _, err := c.a.Grant(t.Context(), 5, 60); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"/registry/events/a", "/registry/x/a"} {
			if err := putLeased(t, c.a, key, 5); err != nil {
				t.Fatal(err)
			}
		}
		c.exchange()
		pass(50 * time.Second)
		if _, err := c.a.KeepAlive(5); err != nil {
			t.Fatal(err)
		}
		c.exchange()
		if st, err := c.b.TimeToLive(5, true); err != nil || len(st.Keys) != 2 {
			t.Errorf("the lease elsewhere: %+v, %v", st, err)
		}
		c.stopA()
		pass(59 * time.Second)
		for _, key := range []string{"/registry/events/a", "/registry/x/a"} {
			if got := get(t, c.b, key, 0); got != "v" {
				t.Errorf("kept alive, %s is %s", key, got)
			}
		}
		pass(15 * time.Second)
		for _, key := range []string{"/registry/events/a", "/registry/x/a"} {
			if got := get(t, c.b, key, 0); got != "<none>" {
				t.Errorf("run out, %s is %s", key, got)
			}
		}
		if ids := c.b.Leases(); len(ids) != 0 {
			t.Errorf("leases %v are left", ids)
		}
		c.stopB()
	})
}

// TestLeaseOfAClockBehind: a node that hears of later times stamps its changes with
// those, but its leases have left what they have.
func TestLeaseOfAClockBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		later := time.Now().AddDate(30, 0, 0).Add(4 * time.Minute)
		if err := c.a.Apply(t.Context(), []*crdt.Record{remote("/registry/x/later", "x", 1, later)}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.a.Grant(t.Context(), 5, 60); err != nil {
			t.Fatal(err)
		}
		if err := putLeased(t, c.a, "/registry/x/a", 5); err != nil {
			t.Fatal(err)
		}
		c.exchange()
		pass(59 * time.Second)
		if got := get(t, c.b, "/registry/x/a", 0); got != "v" {
			t.Errorf("after 59 of 60 seconds the key is %s", got)
		}
		c.stopA()
		pass(15 * time.Second)
		if got := get(t, c.b, "/registry/x/a", 0); got != "<none>" {
			t.Errorf("run out, the key is %s", got)
		}
		c.stopB()
	})
}

// TestLeaseEndsWhereItBegan: the node that granted a lease ends it, and the
// others have nothing left to do.
func TestLeaseEndsWhereItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		if _, err := c.a.Grant(t.Context(), 5, 10); err != nil {
			t.Fatal(err)
		}
		if err := putLeased(t, c.a, "/registry/x/a", 5); err != nil {
			t.Fatal(err)
		}
		c.exchange()
		c.restartB() // the lease is on disk with its key
		pass(11 * time.Second)
		c.exchange()
		if got := get(t, c.b, "/registry/x/a", 0); got != "<none>" {
			t.Errorf("the key is %s", got)
		}
		own, _ := c.b.Origins()
		pass(time.Minute)
		if n := c.b.Vector()[own]; n != 0 {
			t.Errorf("it deleted again, as change %d", n)
		}
		c.stopA()
		c.stopB()
	})
}

// TestIdlePeersWriteNothing: renewals go from node to node and touch no disk.
func TestIdlePeersWriteNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCouple(t)
		put(t, c.a, "/registry/x/a", "busy")
		c.exchange()
		pass(time.Minute)
		bytes := c.fs.bytes.Load()
		for range 120 {
			put(t, c.a, "/registry/leases/kube-system/kube-scheduler", "renewed")
			put(t, c.a, "/registry/events/e", "again")
			del(t, c.a, "/registry/events/e")
			c.exchange()
			c.b.SetStable(c.a.Vector())
			pass(10 * time.Second)
		}
		if got := get(t, c.b, "/registry/leases/kube-system/kube-scheduler", 0); got != "renewed" {
			t.Errorf("the lease is %s", got)
		}
		// One reservation an hour.
		if n := c.fs.bytes.Load() - bytes; n > 500 {
			t.Errorf("%d bytes written in twenty idle minutes", n)
		}
		c.stopA()
		c.stopB()
	})
}
