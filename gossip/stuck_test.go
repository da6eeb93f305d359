package gossip_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/simulate"
	"github.com/mootkube/moot/gossip/store"
)

// stuck is a replica that has no frame for anyone, as one whose disk hangs.
type stuck struct{ gossip.Replica }

func (stuck) Tail(context.Context, crdt.Vector, func(crdt.Origin) time.Duration) (gossip.Tail, error) {
	return stuckTail{}, nil
}

type stuckTail struct{}

func (stuckTail) Next(ctx context.Context) (store.Frame, error) {
	<-ctx.Done()
	return store.Frame{}, ctx.Err()
}

func (stuckTail) Acked(crdt.Vector) {}

func (stuckTail) Close() {}

// startWithStuck starts the first two of three nodes, of which the first is stuck.
func startWithStuck(t *testing.T, c *simulate.Cluster) (stuckOne, other, third *simulate.Node) {
	t.Helper()
	c.Config = func(cfg *gossip.Config) {
		if cfg.Name == c.Nodes[0].Name {
			cfg.Store = stuck{cfg.Store}
		}
	}
	for _, n := range c.Nodes[:2] {
		if err := n.Start(c.Nodes[0].Addr); err != nil {
			t.Fatal(err)
		}
	}
	await(t, 10*time.Second, "two know each other", func() bool { return whole(c.Nodes[:2]) })
	return c.Nodes[0], c.Nodes[1], c.Nodes[2]
}

// TestStuckPeerKeepsNobodyWaiting: catching up with one peer at a time goes on
// with the next when the first sends nothing.
func TestStuckPeerKeepsNobodyWaiting(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		n1, n2, n3 := startWithStuck(t, c)
		for i := range 1500 {
			put(t, n2, fmt.Sprintf("/registry/pods/p%d", i), "x")
		}
		await(t, 10*time.Second, "two have it", func() bool { return equal(c.Nodes[:2]) })
		c.Net.Cut(n2.Addr.Addr())
		if err := n3.Start(n1.Addr); err != nil {
			t.Fatal(err)
		}
		await(t, 10*time.Second, "the stuck one is tailed", func() bool { return followed(n1) > 0 })
		simulate.Pass(time.Second)
		c.Net.Heal()
		await(t, time.Minute, "the third has it", func() bool { return equal(c.Nodes) })
	})
}

// TestBootstrapPassesAStuckPeer: a new replica is filled by another member when
// one that is asked first has what it does not send.
func TestBootstrapPassesAStuckPeer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		n1, n2, n3 := startWithStuck(t, c)
		put(t, n1, "/registry/pods/only", "x")
		put(t, n2, "/registry/pods/p", "x")
		if err := n3.Start(n1.Addr); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		began := time.Now()
		if err := n3.Agent.Bootstrap(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("bootstrapped after %v", time.Since(began))
		if !n3.Replica.Vector().Includes(n2.Replica.Vector()) {
			t.Error("bootstrapped, and without what the other has")
		}
	})
}

// unwilling is a replica that takes no changes in, as one whose clock is behind.
type unwilling struct{ gossip.Replica }

func (unwilling) Apply(context.Context, []*crdt.Record, crdt.Vector) error { return crdt.ErrDrift }

// TestWhatIsNotTakenInIsTold: a node that cannot apply a peer's changes says so,
// once, and not at every try.
func TestWhatIsNotTakenInIsTold(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *simulate.Cluster) {
		log := &logLines{}
		n1, n2 := c.Nodes[0], c.Nodes[1]
		c.Config = func(cfg *gossip.Config) {
			if cfg.Name == n2.Name {
				cfg.Store, cfg.Log = unwilling{cfg.Store}, slog.New(slog.NewTextHandler(log, nil))
			}
		}
		start(t, c)
		put(t, n1, "/registry/pods/p", "x")
		simulate.Pass(time.Minute)
		if n := log.matching("changes of a peer are not taken in"); n != 1 {
			t.Errorf("it was told %d times", n)
		}
	})
}
