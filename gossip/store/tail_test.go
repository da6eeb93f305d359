package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// pair returns two replicas with nothing in them.
func pair(t *testing.T, change func(*Config)) (a, b *replica) {
	c := newCluster(t, 1, 2, change)
	return c.replicas[0], c.replicas[1]
}

func tailOf(t *testing.T, s *Store) *Tail {
	t.Helper()
	tail, err := s.Tail(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tail.Close)
	return tail
}

func TestTailFollows(t *testing.T) {
	a, _ := pair(t, nil)
	put(t, a.s, "/registry/pods/before", "1")
	tail := tailOf(t, a.s)
	f, err := tail.Next(t.Context())
	if err != nil || len(f.Records) != 1 || f.Cut || f.Revision != a.s.Revision() {
		t.Fatalf("first frame %+v, %v", f, err)
	}
	got := make(chan Frame)
	go func() {
		for {
			f, err := tail.Next(t.Context())
			if err != nil {
				close(got)
				return
			}
			got <- f
		}
	}()
	for i := range 20 {
		put(t, a.s, "/registry/ranges/local", "stays")
		rev := put(t, a.s, "/registry/pods/live", fmt.Sprint(i))
		f := <-got
		if len(f.Records) != 1 || string(f.Records[0].Value) != fmt.Sprint(i) || f.Revision != rev || !f.Vector.Covers(f.Records[0].Dot) {
			t.Fatalf("frame %d is %+v", i, f)
		}
	}
	a.stop()
	if _, ok := <-got; ok {
		t.Error("a frame of a closed store")
	}
	if _, err := tail.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("tail of a closed store: %v", err)
	}
}

// TestTailResumes: a peer that comes back gets what it missed, in order while
// the history reaches back, as a cut beyond.
func TestTailResumes(t *testing.T) {
	for name, window := range map[string]int{"history": 10_000, "cut": 50} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, func(c *Config) { c.HistoryEntries = window })
			put(t, a.s, "/registry/pods/first", "1")
			for b.pull(a) {
				b.drain()
			}
			b.hangUp(a)
			for i := range 500 {
				put(t, a.s, fmt.Sprint("/registry/pods/", i%40), fmt.Sprint(i))
				a.drain()
			}
			del(t, a.s, "/registry/pods/first")
			frames, records := 0, 0
			for {
				f, _, err := b.tail(a).poll()
				if err != nil {
					t.Fatal(err)
				}
				if f.Vector == nil && !f.Cut {
					break
				}
				frames, records = frames+1, records+len(f.Records)
				if err := b.s.Apply(t.Context(), onWire(t, f.Records), f.Vector); err != nil {
					t.Fatal(err)
				}
			}
			want := map[string]int{"history": 501, "cut": 41}[name]
			if records != want {
				t.Errorf("%d records, want %d", records, want)
			}
			a.check()
			if get(t, b.s, "/registry/pods/first", 0) != "<none>" {
				t.Error("the delete did not come")
			}
		})
	}
}

// TestFramesAreBounded: a large replica comes in pieces, and a piece of history
// can be resumed from.
func TestFramesAreBounded(t *testing.T) {
	for _, window := range []int{10_000, 50} {
		t.Run(fmt.Sprint("window=", window), func(t *testing.T) {
			a, b := pair(t, func(c *Config) { c.HistoryEntries = window })
			value := strings.Repeat("x", 100_000)
			for i := range 100 {
				put(t, a.s, fmt.Sprintf("/registry/pods/%03d", i), value)
			}
			a.watch.Close()
			a.follow()
			frames := 0
			for b.pull(a) {
				frames++
				if f, _, err := b.tail(a).poll(); err == nil {
					size := 0
					for _, r := range f.Records {
						size += len(r.Value)
					}
					if size > FrameBytes+len(value) {
						t.Fatalf("frame of %d bytes", size)
					}
				}
				b.hangUp(a) // what was not applied comes again
				if window == 50 {
					break // a cut begins anew
				}
			}
			if frames < 5 && window > 100 {
				t.Errorf("%d frames", frames)
			}
			for b.pull(a) {
				b.drain()
			}
			a.settle()
			a.check()
		})
	}
}

// TestDelay: a change waits for the peer to get it from elsewhere, but not
// longer than that, and not when a change that builds on it goes out.
func TestDelay(t *testing.T) {
	c := newCluster(t, 1, 3, nil)
	a, b, peer := c.replicas[0], c.replicas[1], c.replicas[2]
	put(t, a.s, "/registry/pods/a", "1")
	b.pull(a)
	tail := tailOf(t, b.s)
	own, _ := a.s.Origins()
	tail.Delay = func(o crdt.Origin) time.Duration {
		if o == own {
			return time.Hour
		}
		return 0
	}
	f, delay, err := tail.poll()
	if err != nil || len(f.Records) != 0 || f.Vector != nil || delay <= 0 {
		t.Fatalf("a delayed frame: %+v, %v, %v", f, delay, err)
	}
	peer.pull(a)
	tail.Acked(peer.s.Vector())
	if f, delay, err = tail.poll(); err != nil || len(f.Records) != 0 || delay != 0 {
		t.Fatalf("a frame of what the peer has: %+v, %v, %v", f, delay, err)
	}
	put(t, a.s, "/registry/pods/a", "2")
	b.pull(a)
	if f, _, err = tail.poll(); err != nil || len(f.Records) != 0 {
		t.Fatalf("a delayed frame: %+v, %v", f, err)
	}
	put(t, b.s, "/registry/pods/b", "1")
	if f, _, err = tail.poll(); err != nil || len(f.Records) != 2 {
		t.Fatalf("%d records, %v; want both", len(f.Records), err)
	}
}

func TestTailEndsWithContext(t *testing.T) {
	a, _ := pair(t, nil)
	tail := tailOf(t, a.s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tail.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("next: %v", err)
	}
	if _, err := a.s.Tail(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("tail: %v", err)
	}
}

// TestTailReachesTheEnd: the frame that fills up says how far it reaches with what
// follows and is nothing to the peer. Who wrote together with that waits for an
// acknowledgement of all of it, and no other frame would bring one.
func TestTailReachesTheEnd(t *testing.T) {
	a, _ := pair(t, nil)
	tail := tailOf(t, a.s)
	res, err := a.s.Txn(t.Context(), Txn{Then: []Op{
		{Kind: OpPut, Key: []byte("/registry/x"), Value: make([]byte, FrameBytes)},
		{Kind: OpPut, Key: []byte("/registry/leases/kube-node-lease/n"), Value: []byte("x")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for {
		f, _, err := tail.poll()
		if err != nil {
			t.Fatal(err)
		}
		if f.Vector == nil {
			break
		}
		last = f.Revision
	}
	if last != res.Revision {
		t.Errorf("the last frame reaches to %d, the history to %d", last, res.Revision)
	}
}
