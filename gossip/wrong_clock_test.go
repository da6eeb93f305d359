package gossip_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/simulate"
)

const tenYears = 10 * 365 * 24 * time.Hour

// wrongAtStart makes the clock of one node wrong by so much when it starts. Until
// it is put right after a while, if ever, it goes on from there.
func wrongAtStart(c *simulate.Cluster, name string, by, after time.Duration) {
	c.Config = func(cfg *gossip.Config) {
		if cfg.Name != name {
			return
		}
		started := time.Now()
		cfg.Birth = crdt.StampAt(started.Add(by))
		cfg.Now = func() time.Time {
			now := time.Now()
			if now.Sub(started) >= after {
				return now
			}
			return now.Add(by)
		}
	}
}

// terms returns how many leaders each node has seen since it started.
func terms(nodes []*simulate.Node) []uint64 {
	var out []uint64
	for _, n := range nodes {
		out = append(out, n.Agent.Status().Term)
	}
	return out
}

// lead crashes one node after the other, and expects them to have led in this order.
func lead(t *testing.T, c *simulate.Cluster, names ...string) {
	t.Helper()
	for _, name := range names {
		await(t, 10*time.Second, name+" leads", func() bool {
			for _, n := range running(c) {
				if l, ok := n.Agent.Leader(); !ok || l.Name != name {
					return false
				}
			}
			return true
		})
		i := slices.IndexFunc(c.Nodes, func(n *simulate.Node) bool { return n.Name == name })
		if err := c.Nodes[i].Crash(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClockOfThePastTakesNoLead: a node whose clock is years in the past when it
// starts is the youngest all the same, also when the clock has been put right before
// it reaches anybody. Nobody sees it lead, not for a moment.
func TestClockOfThePastTakesNoLead(t *testing.T) {
	for what, after := range map[string]time.Duration{"wrong for good": tenYears, "put right in time": time.Second} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
				start(t, c)
				old := slices.Clone(c.Nodes)
				simulate.Pass(time.Minute)
				before := terms(old)

				pi := c.Add()
				wrongAtStart(c, pi.Name, -tenYears, after)
				c.Net.Dark(pi.Addr.Addr())
				if err := pi.Start(old[1].Addr); err != nil {
					t.Fatal(err)
				}
				simulate.Pass(2 * time.Second)
				c.Net.Light(pi.Addr.Addr())
				await(t, 20*time.Second, "it is in", func() bool { return whole(c.Nodes) })
				before = append(before, terms(c.Nodes[3:])...)
				simulate.Pass(20 * time.Second)
				if got := terms(c.Nodes); !slices.Equal(got, before) {
					t.Errorf("leaders seen: %v, then %v", before, got)
				}
				last := c.Add()
				if err := last.Start(old[2].Addr); err != nil {
					t.Fatal(err)
				}
				await(t, 20*time.Second, "the last is in", func() bool { return whole(c.Nodes) })
				lead(t, c, "n1", "n2", "n3", "n4", "n5")
			})
		})
	}
}

// TestClockOfThePastAlone: a node that has run alone for long, with a clock of the
// past, gets its place among the others by the time that it has run, whichever
// side finds the other, and though the first that it meets is younger.
func TestClockOfThePastAlone(t *testing.T) {
	for what, seeks := range map[string]bool{"it seeks the others": true, "it is sought": false} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, 4, func(t *testing.T, c *simulate.Cluster) {
				n1, n2, pi, n4 := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
				run := func(n *simulate.Node, seed *simulate.Node) {
					if err := n.Start(seed.Addr); err != nil {
						t.Fatal(err)
					}
					simulate.Pass(time.Minute)
				}
				run(n1, n1)
				run(n2, n1)
				wrongAtStart(c, pi.Name, -tenYears, 10*time.Second)
				c.Net.Cut(pi.Addr.Addr())
				if seeks {
					run(pi, n4)
				} else {
					run(pi, pi)
				}
				run(n4, n1)
				if !seeks {
					register(t, n4, pi)
				}
				others := []*simulate.Node{n1, n2, n4}
				await(t, time.Second, "each side leads itself", func() bool { return slices.Equal(leaders(c.Nodes), []string{"n1", "n3"}) })
				simulate.Pass(10 * time.Second)
				before := terms(others)
				c.Net.Heal()
				await(t, 30*time.Second, "one cluster", func() bool { return whole(c.Nodes) })
				simulate.Pass(20 * time.Second)
				if got := terms(others); !slices.Equal(got, before) {
					t.Errorf("leaders seen: %v, then %v", before, got)
				}
				lead(t, c, "n1", "n2", "n3", "n4")
			})
		})
	}
}

// TestClockOfTheFuture: neither does a clock of the future make a node younger than
// those that start after it, nor does it move those before.
func TestClockOfTheFuture(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, c *simulate.Cluster) {
		wrongAtStart(c, "n2", tenYears, tenYears)
		births := map[string]crdt.Stamp{}
		for _, n := range c.Nodes {
			if err := n.Start(c.Nodes[0].Addr, c.Nodes[1].Addr); err != nil {
				t.Fatal(err)
			}
			for _, m := range n.Agent.Members() {
				if m.Self {
					births[m.Name] = m.Birth
				}
			}
			simulate.Pass(10 * time.Second)
		}
		await(t, 10*time.Second, "cluster forms", func() bool { return whole(c.Nodes) })
		for _, m := range c.Nodes[3].Agent.Members()[:2] {
			if m.Birth != births[m.Name] {
				t.Errorf("%s has changed its birth", m.Name)
			}
		}
		lead(t, c, "n1", "n2", "n3", "n4")
	})
}

// TestClockOfThePastAndOneName: a node whose clock is in the past when it starts does
// not push out the one whose name it has.
func TestClockOfThePastAndOneName(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		simulate.Pass(10 * time.Second)
		twin := c.Add()
		twin.Name = "n2"
		wrongAtStart(c, twin.Name, -tenYears, tenYears)
		if err := twin.Start(c.Nodes[0].Addr); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-twin.Done():
			twin.Agent = nil
			if !errors.Is(err, gossip.ErrRefused) {
				t.Errorf("run ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it stays")
		}
		simulate.Pass(5 * time.Second)
		if !whole(running(c)) {
			t.Errorf("n1 holds %s", states(c.Nodes[0]))
		}
	})
}

// TestClockOfThePastAndRestarts: members that take a restarted daemon for the one
// before do not hear of its birth before it is settled.
func TestClockOfThePastAndRestarts(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *simulate.Cluster) {
		c.Net.Latency = 50 * time.Millisecond
		start(t, c)
		old := slices.Clone(c.Nodes)
		pi := c.Add()
		wrongAtStart(c, pi.Name, -tenYears, tenYears)
		register(t, old[0], c.Nodes...)
		simulate.Pass(10 * time.Second)
		before := terms(old)
		for range 20 {
			if err := pi.Start(old[1].Addr); err != nil {
				t.Fatal(err)
			}
			await(t, 20*time.Second, "it is in", func() bool { return whole(c.Nodes) })
			simulate.Pass(5 * time.Second)
			if got := terms(old); !slices.Equal(got, before) {
				t.Fatalf("leaders seen: %v, then %v", before, got)
			}
			if err := pi.Kill(); err != nil {
				t.Fatal(err)
			}
			simulate.Pass(time.Second)
		}
	})
}
