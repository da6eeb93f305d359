package gossip_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/simulate"
)

// inBubble runs a test of a cluster where time is simulated.
func inBubble(t *testing.T, nodes int, test func(t *testing.T, c *simulate.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := simulate.NewCluster(simulate.NewNetwork(1), nodes)
		if os.Getenv("MOOT_GOSSIP_LOG") != "" {
			c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		defer func() {
			if err := c.StopAll(); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("stop: %v", err)
			}
			simulate.Pass(10 * time.Second) // memberlist ends its last probes
		}()
		test(t, c)
	})
}

// states is what a node holds of the others, in one line.
func states(n *simulate.Node) string {
	var b strings.Builder
	for _, m := range n.Agent.Members() {
		fmt.Fprintf(&b, "%s=%s ", m.Name, m.State)
	}
	return strings.TrimSpace(b.String())
}

// await waits until cond holds, in simulated time.
func await(t *testing.T, limit time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	took, ok := simulate.Await(limit, 10*time.Millisecond, cond)
	if !ok {
		t.Fatalf("%s: not within %v", what, limit)
	}
	return took
}

func running(c *simulate.Cluster) []*simulate.Node {
	var out []*simulate.Node
	for _, n := range c.Nodes {
		if n.Agent != nil {
			out = append(out, n)
		}
	}
	return out
}

// whole reports whether each of the nodes holds exactly these alive.
func whole(nodes []*simulate.Node) bool {
	names := map[string]bool{}
	for _, n := range nodes {
		names[n.Name] = true
	}
	for _, n := range nodes {
		alive := 0
		for _, m := range n.Agent.Members() {
			if m.State == gossip.StateAlive {
				if !names[m.Name] {
					return false
				}
				alive++
			}
		}
		if alive != len(nodes) {
			return false
		}
	}
	return true
}

// equal reports whether all nodes have one vector and one digest.
func equal(nodes []*simulate.Node) bool {
	for _, n := range nodes[1:] {
		if !n.Replica.Vector().Includes(nodes[0].Replica.Vector()) || !nodes[0].Replica.Vector().Includes(n.Replica.Vector()) ||
			n.Replica.Digest() != nodes[0].Replica.Digest() {
			return false
		}
	}
	return true
}

// leaders returns the names of all nodes that lead by their own view.
func leaders(nodes []*simulate.Node) []string {
	var out []string
	for _, n := range nodes {
		if l, ok := n.Agent.Leader(); ok && l.Self {
			out = append(out, n.Name)
		}
	}
	return out
}

func start(t *testing.T, c *simulate.Cluster) {
	t.Helper()
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	took := await(t, 10*time.Second, "cluster forms", func() bool { return whole(running(c)) })
	t.Logf("%d nodes know each other after %v", len(c.Nodes), took)
}

func put(t *testing.T, n *simulate.Node, key, value string) {
	t.Helper()
	if err := n.Memory().Put(t.Context(), key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func TestClusterForms(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		if got := leaders(c.Nodes); len(got) != 1 || got[0] != "n1" {
			t.Errorf("leaders %v, want the oldest", got)
		}
		for _, n := range c.Nodes {
			put(t, n, "/registry/pods/"+n.Name, `{"a":1}`)
		}
		await(t, 5*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		for _, n := range c.Nodes {
			if s := n.Agent.Status(); s.Acks.Peer == 0 || s.Acks.TimedOut != 0 {
				t.Errorf("%s acknowledged %+v", n.Name, s.Acks)
			}
		}
	})
}

func TestCrashIsNoticed(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		simulate.Pass(5 * time.Second)
		if err := c.Nodes[0].Crash(); err != nil {
			t.Fatal(err)
		}
		left := c.Nodes[1:]
		suspect := await(t, 3*time.Second, "all suspect the dead", func() bool {
			for _, n := range left {
				if stateOf(n, "n1") == gossip.StateAlive {
					return false
				}
			}
			return true
		})
		dead := await(t, 5*time.Second, "all declare it dead", func() bool {
			for _, n := range left {
				if stateOf(n, "n1") != gossip.StateDead {
					return false
				}
			}
			return true
		})
		t.Logf("suspect after %v, dead after %v", suspect, suspect+dead)
		// In this bubble time is exact: serf's declaration is believed once a
		// call has failed, not only after a stream's longest silence.
		if suspect+dead >= 2400*time.Millisecond {
			t.Error("a call does not confirm the death")
		}
		if got := leaders(left); len(got) != 1 || got[0] != "n2" {
			t.Errorf("leaders %v, want the oldest left", got)
		}
		if !whole(left) {
			t.Errorf("survivors are not whole: %s", states(left[0]))
		}
	})
}

func stateOf(n *simulate.Node, name string) gossip.State {
	for _, m := range n.Agent.Members() {
		if m.Name == name {
			return m.State
		}
	}
	return ""
}

func addrs(nodes []*simulate.Node) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		out = append(out, n.Addr.Addr())
	}
	return out
}

func TestCutAndHeal(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *simulate.Cluster) {
		start(t, c)
		small, large := c.Nodes[:2], c.Nodes[2:]
		c.Net.Cut(addrs(small)...)
		await(t, 10*time.Second, "two clusters, a leader each", func() bool {
			return whole(small) && whole(large) && slices.Equal(leaders(c.Nodes), []string{"n1", "n3"})
		})
		for _, n := range c.Nodes {
			put(t, n, "/registry/pods/own-"+n.Name, `{"a":1}`)
			put(t, n, "/registry/pods/shared", fmt.Sprintf(`{"by":%q}`, n.Name))
		}
		await(t, 5*time.Second, "each side is equal", func() bool { return equal(small) && equal(large) })
		if equal(c.Nodes) {
			t.Error("the cut let changes through")
		}
		simulate.Pass(time.Minute)
		c.Net.Heal()
		took := await(t, 15*time.Second, "one cluster again", func() bool { return whole(c.Nodes) })
		took += await(t, 15*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
		t.Logf("one cluster and equal after %v", took)
		if got := leaders(c.Nodes); len(got) != 1 || got[0] != "n1" {
			t.Errorf("leaders %v, want the oldest", got)
		}
	})
}
