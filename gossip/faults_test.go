package gossip_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/simulate"
)

// Nodes crash, are killed, cut off and come back at random while all write.
// When all is well again there is one cluster, one leader, one content, and
// every write that was acknowledged is in it. MOOT_GOSSIP_SEED tries one seed.
func TestRandomFaults(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6}
	if s, err := strconv.ParseUint(os.Getenv("MOOT_GOSSIP_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			inBubble(t, 5, func(t *testing.T, c *simulate.Cluster) {
				f := &faults{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 7)), acked: map[string]bool{}} //nolint:gosec // chances are to be repeatable
				c.Net.Lose(0.02)
				start(t, c)
				register(t, c.Nodes[0], c.Nodes...)
				await(t, 10*time.Second, "replicas are equal", func() bool { return equal(c.Nodes) })
				for range 60 {
					f.step()
				}
				f.heal()
			})
		})
	}
}

type faults struct {
	t     *testing.T
	c     *simulate.Cluster
	rng   *rand.Rand
	acked map[string]bool
	wrote int
}

// step does something to the cluster, writes, and lets time pass.
func (f *faults) step() {
	n := f.c.Nodes[f.rng.IntN(len(f.c.Nodes))]
	switch action := f.rng.IntN(8); {
	case action == 0 && n.Agent != nil && len(running(f.c)) > 1:
		f.must(n.Crash())
	case action == 1 && n.Agent != nil && len(running(f.c)) > 1:
		f.must(n.Kill())
	case action <= 3 && n.Agent == nil:
		n.Light()
		f.must(n.Start())
	case action == 4:
		k := 1 + f.rng.IntN(len(f.c.Nodes)-1)
		var side []netip.Addr
		for _, i := range f.rng.Perm(len(f.c.Nodes))[:k] {
			side = append(side, f.c.Nodes[i].Addr.Addr())
		}
		f.c.Net.Cut(side...)
	case action == 5:
		f.c.Net.Heal()
	}
	for range 5 {
		up := running(f.c)
		w := up[f.rng.IntN(len(up))]
		key := fmt.Sprintf("/registry/pods/p%d", f.wrote)
		f.wrote++
		put(f.t, w, key, fmt.Sprintf(`{"by":%q}`, w.Name))
		f.acked[key] = true
		put(f.t, w, "/registry/pods/shared", fmt.Sprintf(`{"by":%q}`, w.Name))
	}
	simulate.Pass(time.Duration(f.rng.Int64N(int64(8 * time.Second))))
}

func (f *faults) must(err error) {
	if err != nil {
		f.t.Fatal(err)
	}
}

// heal brings everything back and checks that it is well.
func (f *faults) heal() {
	t, c := f.t, f.c
	c.Net.Heal()
	c.Net.Lose(0)
	for _, n := range c.Nodes {
		if n.Agent == nil {
			n.Light()
			f.must(n.Start())
		}
	}
	took := await(t, time.Minute, "one cluster", func() bool { return whole(c.Nodes) })
	took += await(t, time.Minute, "one content", func() bool { return equal(c.Nodes) })
	t.Logf("well again after %v, %d writes", took, f.wrote)
	await(t, 5*time.Second, "one leader", func() bool {
		if len(leaders(c.Nodes)) != 1 {
			return false
		}
		first, _ := c.Nodes[0].Agent.Leader()
		for _, n := range c.Nodes {
			if l, ok := n.Agent.Leader(); !ok || l.Name != first.Name {
				return false
			}
		}
		return true
	})
	for key := range f.acked {
		if _, ok := c.Nodes[0].Memory().Get(key); !ok {
			t.Errorf("an acknowledged write is lost: %s", key)
		}
	}
	for _, n := range c.Nodes {
		for _, m := range n.Agent.Status().Members {
			if m.State != gossip.StateAlive || m.Differs {
				t.Errorf("%s holds %+v", n.Name, m)
			}
		}
	}
}
