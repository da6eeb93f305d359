package store

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// partOf gives to the first changes of what from has for it, and no end of the frame.
func (r *replica) partOf(from *replica, n int) []*crdt.Record {
	r.t.Helper()
	f, _, err := r.tail(from).poll()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.Apply(r.t.Context(), onWire(r.t, f.Records[:n]), nil); err != nil {
		r.t.Fatal(err)
	}
	r.hangUp(from)
	return f.Records[:n]
}

// exchange has two replicas tell each other all, on new streams.
func exchange(a, b *replica) {
	a.t.Helper()
	a.hangUp(b)
	b.hangUp(a)
	for a.pull(b) || b.pull(a) {
	}
}

// lose takes a replica out of the cluster for good.
func (c *cluster) lose(r *replica) {
	c.t.Helper()
	for _, other := range c.replicas {
		r.hangUp(other)
		other.hangUp(r)
	}
	r.stop()
	c.replicas = slices.DeleteFunc(slices.Clone(c.replicas), func(other *replica) bool { return other == r })
}

// TestBeyond: what a replica has of a frame that has not come to its end, or set
// aside, it does not include, but it says so to whoever wrote it.
func TestBeyond(t *testing.T) {
	a, b := pair(t, nil)
	own := a.s.Origin()
	putMany(t, a.s, "/registry/x/", 20)
	b.partOf(a, 10)
	for range 2 {
		if got := b.s.Beyond(); len(got) != 1 || got[own] != 10 || b.s.Vector()[own] != 0 {
			t.Errorf("beyond what it includes, %v, are %v, want 10", b.s.Vector(), got)
		}
		b.reopen(false)
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
		b.reopen(false)
	}
}

// TestForgottenOfOneThatIsGone: a node is lost for good while a part of what it sent
// has come. What it had no time to say that it was all of is here, can be deleted and
// forgotten, and keeps no replica from another.
func TestForgottenOfOneThatIsGone(t *testing.T) {
	var ahead atomic.Int64
	c := newCluster(t, 1, 3, later(&ahead))
	a, b, d := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, b.s, "/registry/x/before", "x")
	c.settle()
	putMany(t, a.s, "/registry/lost/", 20)
	part := b.partOf(a, 10)
	c.lose(a)
	exchange(b, d)
	for _, r := range c.replicas { // both at once
		for _, k := range part {
			del(t, r.s, string(k.Key))
		}
	}
	exchange(b, d)
	ahead.Store(int64(25 * time.Hour))
	for _, r := range c.replicas {
		r.bury(10)
	}
	for i := range 3 {
		put(t, b.s, fmt.Sprint("/registry/y/", i), "x")
		put(t, d.s, fmt.Sprint("/registry/z/", i), "x")
		exchange(b, d)
	}
	if b.s.Digest() != d.s.Digest() || countKeys(t, b.s, "/registry/lost/") != 0 {
		t.Errorf("digests %s and %s, %d keys of the lost node", b.s.Digest(), d.s.Digest(), countKeys(t, b.s, "/registry/lost/"))
	}
}

// TestDeleteOfOneThatIsGone: what came of a node's last frame is a delete. It is not
// forgotten before one that was away hears of it.
func TestDeleteOfOneThatIsGone(t *testing.T) {
	var ahead atomic.Int64
	c := newCluster(t, 1, 3, later(&ahead))
	a, b, d := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, d.s, "/registry/x/k", "x")
	c.settle()
	del(t, a.s, "/registry/x/k")
	put(t, a.s, "/registry/x/other", "x")
	b.partOf(a, 1)
	c.lose(a)
	ahead.Store(int64(26 * time.Hour))
	b.bury(1)
	exchange(b, d)
	c.gone("/registry/x/k")
}

// TestObjectOfOneThatIsGone: what came of a node's last frame is an object. It is
// deleted, and one that was away does not bring it back.
func TestObjectOfOneThatIsGone(t *testing.T) {
	var ahead atomic.Int64
	c := newCluster(t, 1, 3, later(&ahead))
	a, b, d := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, b.s, "/registry/x/before", "x")
	c.settle()
	put(t, a.s, "/registry/x/k", configMap("1"))
	put(t, a.s, "/registry/x/other", "x")
	b.partOf(a, 1)
	c.lose(a)
	exchange(b, d)
	del(t, b.s, "/registry/x/k")
	ahead.Store(int64(26 * time.Hour))
	b.bury(1)
	exchange(b, d)
	c.gone("/registry/x/k")
}

// TestFinishedAfterAll: a node comes back after a day in the middle of a frame. The
// tombstones of what had come of it are then like any others.
func TestFinishedAfterAll(t *testing.T) {
	var ahead atomic.Int64
	a, b := pair(t, later(&ahead))
	put(t, b.s, "/registry/x/before", "x")
	b.settle()
	putMany(t, a.s, "/registry/lost/", 20)
	for _, k := range b.partOf(a, 10) {
		del(t, b.s, string(k.Key))
	}
	ahead.Store(int64(26 * time.Hour))
	b.bury(10)
	b.settle()
	b.s.SetStable(b.s.Vector())
	b.bury(0)
}

// TestNothingIsBeyondOnOnesOwn: what no peer gets is not beyond what is included.
func TestNothingIsBeyondOnOnesOwn(t *testing.T) {
	cfg := testConfig(t)
	s, stop := start(t, cfg)
	put(t, s, "/registry/x/a", "x")
	put(t, s, "/registry/ranges/serviceips", "1")
	stop()
	s, _ = start(t, cfg)
	if got := s.Beyond(); len(got) > 0 {
		t.Errorf("beyond what is included are %v", got)
	}
}

// gone checks that no replica has a key, and that all have the same.
func (c *cluster) gone(key string) {
	c.t.Helper()
	for _, r := range c.replicas {
		if got := get(c.t, r.s, key, 0); got != "<none>" {
			c.t.Errorf("replica %d has %s", r.id, got)
		}
		if r.s.Digest() != c.replicas[0].s.Digest() {
			c.t.Errorf("digests %s and %s", r.s.Digest(), c.replicas[0].s.Digest())
		}
	}
}

// TestBeyondUnderAnotherDot: a change that nobody includes is in the state of an
// object under a later change of another node's, which is passed on, or read again.
func TestBeyondUnderAnotherDot(t *testing.T) {
	c := newCluster(t, 1, 3, nil)
	a, b, d := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, b.s, "/registry/configmaps/k", configMap("1"))
	c.settle()
	own, seq := a.s.Origin(), a.s.Vector()[a.s.Origin()]
	put(t, a.s, "/registry/configmaps/k", configMap("2"))
	put(t, a.s, "/registry/x/other", "x")
	b.partOf(a, 1)
	put(t, b.s, "/registry/configmaps/k", configMap("3"))
	b.bury(0)
	exchange(b, d)
	b.reopen(false)
	for _, r := range []*replica{b, d} {
		if got := r.s.Beyond()[own]; got != seq+1 {
			t.Errorf("replica %d has changes up to %d beyond what it includes, want %d", r.id, got, seq+1)
		}
	}
}

// TestBeyondAside: a replica is wiped while it has a part of a frame, and starts again
// before it is filled.
func TestBeyondAside(t *testing.T) {
	c := newCluster(t, 1, 3, nil)
	a, b, d := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, d.s, "/registry/x/before", "x")
	c.settle()
	putMany(t, a.s, "/registry/lost/", 20)
	b.partOf(a, 10)
	put(t, d.s, "/registry/x/d", "x")
	if err := b.s.Wipe(t.Context(), d.s.Vector()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := b.s.Beyond()[a.s.Origin()]; got != 10 {
			t.Errorf("set aside are changes up to %d, want 10", got)
		}
		b.reopen(false)
	}
}
