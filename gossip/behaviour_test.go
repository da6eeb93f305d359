package gossip_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/simulate"
)

// timedPut returns how long a write waited for its acknowledgement.
func timedPut(t *testing.T, n *simulate.Node, key string) time.Duration {
	t.Helper()
	start := time.Now()
	put(t, n, key, `{"a":1}`)
	return time.Since(start)
}

func TestWritesWaitForOnePeer(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		n1 := c.Nodes[0]
		if err := n1.Start(); err != nil {
			t.Fatal(err)
		}
		<-n1.Agent.Ready()
		if took := timedPut(t, n1, "/k/alone"); took != 0 {
			t.Errorf("alone, a write waited for %v", took)
		}
		for _, n := range c.Nodes[1:] {
			if err := n.Start(n1.Addr); err != nil {
				t.Fatal(err)
			}
		}
		await(t, 5*time.Second, "cluster forms", func() bool { return whole(c.Nodes) && followed(n1) == 2 })
		before := n1.Agent.Status().Acks
		if took := timedPut(t, n1, "/k/whole"); took == 0 || took > 100*time.Millisecond {
			t.Errorf("a write waited for %v, want a round trip", took)
		}
		// One of two peers falls silent: the other is enough.
		c.Net.Dark(c.Nodes[1].Addr.Addr())
		if took := timedPut(t, n1, "/k/one"); took > 100*time.Millisecond {
			t.Errorf("with one peer silent, a write waited for %v", took)
		}
		if got := n1.Agent.Status().Acks; got.Peer != before.Peer+2 || got.TimedOut != 0 {
			t.Errorf("counts %+v after %+v", got, before)
		}
		// Both are: the write goes on alone, once; then nobody waits for them.
		c.Net.Dark(c.Nodes[2].Addr.Addr())
		if took := timedPut(t, n1, "/k/none"); took < 500*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("with all peers silent, a write waited for %v", took)
		}
		if took := timedPut(t, n1, "/k/passed"); took > 10*time.Millisecond {
			t.Errorf("after being passed over, a write waited for %v", took)
		}
		if got := n1.Agent.Status().Acks; got.TimedOut != 1 || got.PassedOver == 0 || got.Alone != before.Alone+1 {
			t.Errorf("counts %+v", got)
		}
		c.Net.Light(c.Nodes[1].Addr.Addr())
		c.Net.Light(c.Nodes[2].Addr.Addr())
		await(t, 20*time.Second, "cluster is whole again", func() bool { return whole(c.Nodes) && equal(c.Nodes) && followed(n1) == 2 })
		acks := n1.Agent.Status().Acks.Peer
		timedPut(t, n1, "/k/again")
		if n1.Agent.Status().Acks.Peer != acks+1 {
			t.Error("peers that came back do not acknowledge")
		}
	})
}

func followed(n *simulate.Node) int {
	k := 0
	for _, m := range n.Agent.Status().Members {
		if m.Followed {
			k++
		}
	}
	return k
}

func TestPauseIsASuspicionOnly(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n2 := c.Nodes[1]
		c.Net.Dark(n2.Addr.Addr())
		await(t, 2*time.Second, "it is suspected", func() bool { return stateOf(c.Nodes[0], "n2") == gossip.StateSuspect })
		if !strings.HasPrefix(leaders(c.Nodes)[0], "n1") {
			t.Errorf("leaders %v", leaders(c.Nodes))
		}
		simulate.Pass(500 * time.Millisecond) // 1.5 s in all
		c.Net.Light(n2.Addr.Addr())
		deadline := time.Now().Add(20 * time.Second)
		for time.Now().Before(deadline) {
			for _, n := range c.Nodes {
				if strings.Contains(states(n), string(gossip.StateDead)) {
					t.Fatalf("%s holds %s", n.Name, states(n))
				}
			}
			simulate.Pass(10 * time.Millisecond)
		}
		if !whole(c.Nodes) {
			t.Errorf("n1 holds %s", states(c.Nodes[0]))
		}
	})
}

func TestKilledDaemonComesBack(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n1 := c.Nodes[0]
		register(t, n1, c.Nodes...)
		if err := n1.Kill(); err != nil {
			t.Fatal(err)
		}
		await(t, 200*time.Millisecond, "reset streams are a suspicion", func() bool {
			return stateOf(c.Nodes[1], "n1") == gossip.StateSuspect && stateOf(c.Nodes[2], "n1") == gossip.StateSuspect
		})
		simulate.Pass(300 * time.Millisecond)
		// It comes back with its replica, and seeks whom the register names.
		if err := n1.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, 10*time.Second, "it is back", func() bool { return whole(c.Nodes) })
		if got := leaders(c.Nodes); len(got) != 1 || got[0] != "n2" {
			t.Errorf("leaders %v, want n2: n1 was born anew", got)
		}
	})
}

// A daemon that is killed resets its streams. Once it is no longer tailed,
// nothing else happens that would have the others look at it again.
func TestKilledDaemonIsDead(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		simulate.Pass(5 * time.Second)
		if err := c.Nodes[0].Kill(); err != nil {
			t.Fatal(err)
		}
		left := c.Nodes[1:]
		took := await(t, 10*time.Second, "all declare it dead", func() bool {
			for _, n := range left {
				if stateOf(n, "n1") != gossip.StateDead {
					return false
				}
			}
			return true
		})
		t.Logf("dead after %v", took)
		if took < 1750*time.Millisecond {
			t.Error("a daemon that starts again would be taken for dead")
		}
		if got := leaders(left); len(got) != 1 || got[0] != "n2" {
			t.Errorf("leaders %v, want the oldest left", got)
		}
	})
}

// register writes the register of members, as joining does.
func register(t *testing.T, at *simulate.Node, nodes ...*simulate.Node) {
	t.Helper()
	for _, n := range nodes {
		put(t, at, "/moot/members/"+n.Name, fmt.Sprintf(`{"number":%d,"address":%q,"version":"v1.0.0"}`, n.Number, n.Addr))
	}
}

func TestRestartedNodeKnowsTheDead(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		register(t, c.Nodes[0], c.Nodes...)
		await(t, 5*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		for _, n := range c.Nodes {
			if err := n.Crash(); err != nil {
				t.Fatal(err)
			}
		}
		n3 := c.Nodes[2]
		n3.Light()
		if err := n3.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, 10*time.Second, "ready alone", func() bool { return isReady(n3) })
		if got := states(n3); got != "n1=dead n2=dead n3=alive" {
			t.Errorf("n3 holds %s", got)
		}
		if got := leaders(running(c)); len(got) != 1 {
			t.Errorf("leaders %v", got)
		}
		for _, m := range n3.Agent.Members() {
			if m.Name == "n1" && (!m.Unheard || m.Number != 1) {
				t.Errorf("member %+v, want it unheard of, with its number", m)
			}
		}
		// Another comes back much later, with no seed either.
		simulate.Pass(10 * time.Minute)
		c.Nodes[1].Light()
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		took := await(t, 20*time.Second, "two are whole", func() bool { return whole(running(c)) })
		t.Logf("found each other after %v", took)
	})
}

func isReady(n *simulate.Node) bool {
	select {
	case <-n.Agent.Ready():
		return true
	default:
		return false
	}
}

func TestRestartWindow(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n1 := c.Nodes[0]
		if err := n1.Agent.Restarting(30 * time.Second); err != nil {
			t.Fatal(err)
		}
		await(t, time.Second, "the lead is given up", func() bool {
			l := leaders(c.Nodes)
			return len(l) == 1 && l[0] == "n2"
		})
		if err := n1.Kill(); err != nil {
			t.Fatal(err)
		}
		gone := time.Now()
		for time.Since(gone) < 29*time.Second {
			if s := stateOf(c.Nodes[1], "n1"); s != gossip.StateRestarting {
				t.Fatalf("after %v n1 is %s", time.Since(gone), s)
			}
			simulate.Pass(100 * time.Millisecond)
		}
		await(t, 3*time.Second, "the window ends", func() bool { return stateOf(c.Nodes[1], "n1") == gossip.StateDead })
		if err := n1.Start(c.Nodes[1].Addr); err != nil {
			t.Fatal(err)
		}
		await(t, 10*time.Second, "it is back", func() bool { return whole(c.Nodes) })
	})
}

// TestRestartWindowByAnotherClock: the window is as long as it was announced to be
// where the clock is behind or ahead.
func TestRestartWindowByAnotherClock(t *testing.T) {
	for what, ahead := range map[string]time.Duration{"behind": -2 * time.Minute, "ahead": 2 * time.Minute} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, 2, func(t *testing.T, c *simulate.Cluster) {
				n1, n2 := c.Nodes[0], c.Nodes[1]
				c.Config = func(cfg *gossip.Config) {
					if cfg.Name == n1.Name {
						cfg.Now = func() time.Time { return time.Now().Add(ahead) }
					}
				}
				start(t, c)
				simulate.Pass(5 * time.Second)
				if err := n1.Agent.Restarting(30 * time.Second); err != nil {
					t.Fatal(err)
				}
				await(t, time.Second, "the restart is known", func() bool { return stateOf(n2, "n1") == gossip.StateRestarting })
				if err := n1.Kill(); err != nil {
					t.Fatal(err)
				}
				took := await(t, 40*time.Second, "the window ends", func() bool { return stateOf(n2, "n1") == gossip.StateDead })
				if took < 25*time.Second {
					t.Errorf("the window of 30 s took %v", took)
				}
			})
		})
	}
}

func TestLeaveHandsOver(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n1 := c.Nodes[0]
		register(t, n1, c.Nodes...)
		await(t, 5*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		left := make(chan error, 1)
		go func() { left <- n1.Agent.Leave(t.Context()) }()
		took := await(t, time.Second, "the lead moves", func() bool {
			l := leaders(c.Nodes)
			return len(l) == 1 && l[0] == "n2"
		})
		t.Logf("the lead moved after %v", took)
		if err := <-left; err != nil {
			t.Fatal(err)
		}
		if err := n1.Stop(); err != nil {
			t.Fatal(err)
		}
		rest := c.Nodes[1:]
		await(t, 5*time.Second, "it has left", func() bool {
			return stateOf(rest[0], "n1") == gossip.StateLeft && stateOf(rest[1], "n1") == gossip.StateLeft
		})
		simulate.Pass(time.Minute)
		if got := states(rest[0]); got != "n1=left n2=alive n3=alive" {
			t.Errorf("n2 holds %s", got)
		}
		if values, err := rest[0].Replica.List(t.Context(), "/moot/members/"); err != nil || len(values) != 2 {
			t.Errorf("register holds %v, %v", values, err)
		}
	})
}

// TestLeaveThatFails: a node that could not hand over stays, and leads again.
func TestLeaveThatFails(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n1, n2 := c.Nodes[0], c.Nodes[1]
		register(t, n1, c.Nodes...)
		await(t, 5*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		c.Net.Cut(n2.Addr.Addr())
		put(t, n1, "/registry/pods/only", "x")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := n1.Agent.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("leave without anyone to hand over to: %v", err)
		}
		await(t, 5*time.Second, "it leads", func() bool { return slices.Equal(leaders(c.Nodes[:1]), []string{"n1"}) })
		c.Net.Heal()
		await(t, 30*time.Second, "both are there", func() bool { return whole(c.Nodes) && equal(c.Nodes) })
	})
}

func TestRemove(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		register(t, c.Nodes[0], c.Nodes...)
		if err := c.Nodes[0].Agent.Remove(t.Context(), "n3"); !errors.Is(err, gossip.ErrLive) {
			t.Errorf("removing a live member: %v", err)
		}
		if err := c.Nodes[2].Crash(); err != nil {
			t.Fatal(err)
		}
		await(t, 5*time.Second, "it is dead", func() bool {
			return stateOf(c.Nodes[0], "n3") == gossip.StateDead && stateOf(c.Nodes[1], "n3") == gossip.StateDead
		})
		if err := c.Nodes[0].Agent.Remove(t.Context(), "n3"); err != nil {
			t.Fatal(err)
		}
		await(t, 5*time.Second, "it is removed everywhere", func() bool {
			return stateOf(c.Nodes[0], "n3") == gossip.StateLeft && stateOf(c.Nodes[1], "n3") == gossip.StateLeft
		})
	})
}

func TestCatchUpNamesTheHung(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		put(t, c.Nodes[3], "/k/a", `{"a":1}`)
		if err := c.Nodes[0].Agent.CatchUp(t.Context()); err != nil {
			t.Errorf("all are there: %v", err)
		}
		if _, ok := c.Nodes[0].Memory().Get("/k/a"); !ok {
			t.Error("caught up, and a change is missing")
		}
		c.Net.Dark(c.Nodes[2].Addr.Addr())
		put(t, c.Nodes[3], "/k/b", `{"b":1}`)
		began := time.Now()
		err := c.Nodes[0].Agent.CatchUp(t.Context())
		if err == nil || !strings.Contains(err.Error(), "n3") || strings.Contains(err.Error(), "n2") {
			t.Errorf("one is hung: %v", err)
		}
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("one hung member held it up for %v", took)
		}
		if _, ok := c.Nodes[0].Memory().Get("/k/b"); !ok {
			t.Error("a live member's change is missing")
		}
	})
}

func TestBootstrap(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		n1, n2, n3 := c.Nodes[0], c.Nodes[1], c.Nodes[2]
		for _, n := range []*simulate.Node{n1, n2} {
			if err := n.Start(n1.Addr); err != nil {
				t.Fatal(err)
			}
		}
		if err := n1.Agent.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		value := fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", 5000))
		for i := range 3000 {
			put(t, n1, fmt.Sprintf("/registry/pods/p%d", i), value)
		}
		await(t, 10*time.Second, "two have it", func() bool { return whole(c.Nodes[:2]) && equal(c.Nodes[:2]) })
		before := streams(c)
		if err := n3.Start(n1.Addr); err != nil {
			t.Fatal(err)
		}
		if err := n3.Agent.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !n3.Replica.Vector().Includes(n1.Replica.Vector()) || n3.Replica.Digest() != n1.Replica.Digest() {
			t.Error("bootstrapped, and not equal")
		}
		sent := streams(c) - before
		if size := uint64(3000 * 5100); sent > size*3/2 {
			t.Errorf("a store of %d bytes took %d to get: it came more than once", size, sent)
		}
	})
}

func streams(c *simulate.Cluster) uint64 {
	total := uint64(0)
	for _, n := range c.Nodes {
		_, s := c.Net.Sent(n.Addr)
		total += s
	}
	return total
}

func TestOtherMajorVersionIsRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		c.Config = func(cfg *gossip.Config) {
			if cfg.Name == "n3" {
				cfg.Version = "v2.1.0"
			}
		}
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		err := <-c.Nodes[2].Done()
		if !errors.Is(err, gossip.ErrRefused) || !strings.Contains(err.Error(), "v1.0.0") {
			t.Errorf("run ended with %v", err)
		}
		c.Nodes[2].Agent = nil
		await(t, 5*time.Second, "the others are a cluster", func() bool { return whole(c.Nodes[:2]) })
		if got := states(c.Nodes[0]); got != "n1=alive n2=alive" {
			t.Errorf("n1 holds %s", got)
		}
	})
}

func TestYoungerOfOneNameGivesWay(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		twin := c.Add()
		twin.Name = "n2"
		if err := twin.Start(c.Nodes[0].Addr); err != nil {
			t.Fatal(err)
		}
		err := <-twin.Done()
		if !errors.Is(err, gossip.ErrRefused) || !strings.Contains(err.Error(), "n2") {
			t.Errorf("run ended with %v", err)
		}
		twin.Agent = nil
		simulate.Pass(5 * time.Second)
		if !whole(running(c)) {
			t.Errorf("n1 holds %s", states(c.Nodes[0]))
		}
	})
}

func TestNodeMovesToAnotherAddress(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		n3 := c.Nodes[2]
		if err := n3.Crash(); err != nil {
			t.Fatal(err)
		}
		moved := c.Add()
		moved.Name, moved.Number, moved.Replica = n3.Name, n3.Number, n3.Replica
		if err := moved.Start(c.Nodes[0].Addr); err != nil {
			t.Fatal(err)
		}
		await(t, 30*time.Second, "it is known at its new address", func() bool {
			return whole([]*simulate.Node{c.Nodes[0], c.Nodes[1], moved})
		})
	})
}

func TestKeysRotate(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		old, fresh := make([]byte, 32), []byte(strings.Repeat("k", 32))
		for _, keys := range [][][]byte{{old, fresh}, {fresh, old}, {fresh}} {
			for _, n := range c.Nodes {
				if err := n.Agent.SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				simulate.Pass(time.Second)
			}
		}
		simulate.Pass(30 * time.Second)
		for _, n := range c.Nodes {
			if !whole(c.Nodes) {
				t.Errorf("%s holds %s", n.Name, states(n))
			}
		}
		if err := c.Nodes[0].Agent.SetKeys([][]byte{{1}}); err == nil {
			t.Error("a short key is taken")
		}
	})
}

func TestStability(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		put(t, c.Nodes[1], "/k/a", `{"a":1}`)
		simulate.Pass(10 * time.Second)
		if v := c.Nodes[0].Memory().Stable(); len(v) > 0 {
			t.Errorf("%v is called stable by one that is not in the register, which may lack others too", v)
		}
		register(t, c.Nodes[0], c.Nodes...)
		await(t, 10*time.Second, "everything is stable everywhere", func() bool {
			for _, n := range c.Nodes {
				if !n.Memory().Stable().Includes(c.Nodes[0].Replica.Vector()) {
					return false
				}
			}
			return true
		})
		if err := c.Nodes[2].Crash(); err != nil {
			t.Fatal(err)
		}
		put(t, c.Nodes[1], "/k/b", `{"a":1}`)
		dot := crdt.Vector{c.Nodes[1].Replica.Origin(): c.Nodes[1].Replica.Vector()[c.Nodes[1].Replica.Origin()]}
		simulate.Pass(time.Minute)
		if c.Nodes[0].Memory().Stable().Includes(dot) {
			t.Error("what a dead member lacks is called stable")
		}
		if err := c.Nodes[0].Agent.Remove(t.Context(), "n3"); err != nil {
			t.Fatal(err)
		}
		await(t, 10*time.Second, "without the dead it is stable", func() bool {
			return c.Nodes[0].Memory().Stable().Includes(dot) && c.Nodes[1].Memory().Stable().Includes(dot)
		})
	})
}

func TestSparseGraphConverges(t *testing.T) {
	inBubble(t, 14, func(t *testing.T, c *simulate.Cluster) {
		c.Config = func(cfg *gossip.Config) { cfg.Mesh, cfg.Degree = 4, 3 }
		start(t, c)
		simulate.Pass(2 * time.Second)
		for _, n := range c.Nodes {
			follows := 0
			for _, m := range n.Agent.Status().Members {
				if m.Follows {
					follows++
				}
			}
			if follows != 3 {
				t.Errorf("%s tails %d members, want 3", n.Name, follows)
			}
		}
		before := streams(c)
		big := fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", 200_000))
		put(t, c.Nodes[0], "/k/big", big)
		put(t, c.Nodes[5], "/k/small", `{"a":1}`)
		took := await(t, 10*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		sent := streams(c) - before
		t.Logf("equal after %v, %d bytes for %d copies of %d", took, sent, len(c.Nodes)-1, len(big))
		// The origin sends it to all who tail it, the others when asked.
		if limit := uint64((len(c.Nodes) + 4) * len(big)); sent > limit {
			t.Errorf("%d bytes sent, more than %d", sent, limit)
		}
		if err := c.Nodes[0].Agent.CatchUp(context.Background()); err != nil {
			t.Error(err)
		}
	})
}
