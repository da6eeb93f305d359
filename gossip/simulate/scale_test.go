package simulate_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/simulate"
)

// TestScale runs clusters of the sizes that MOOT_SIM lists and prints how they
// do. Times are simulated: what a network of 0.2 to 0.4 ms one way and machines
// without load would show. Bytes are before TLS.
func TestScale(t *testing.T) {
	sizes := []int{5}
	if list := os.Getenv("MOOT_SIM"); list != "" {
		sizes = nil
		for s := range strings.SplitSeq(list, ",") {
			n, err := strconv.Atoi(s)
			if err != nil || n < 3 {
				t.Fatalf("MOOT_SIM: %q is no size of 3 or more", s)
			}
			sizes = append(sizes, n)
		}
	}
	rows := []string{header}
	for _, n := range sizes {
		var r report
		synctest.Test(t, func(t *testing.T) { r = run(t, n) })
		rows = append(rows, r.String())
		t.Logf("\n%s\n%s", header, r)
		if r.falseDead > 0 && n <= gossip.DefaultConfig().Mesh {
			t.Errorf("%d nodes: %d times a live member was held dead", n, r.falseDead)
		}
	}
	t.Logf("\n%s", strings.Join(rows, "\n"))
}

const header = "nodes | formed | dead known by all: median, max | held dead wrongly | 5 KB at a node: median, p99 | 5 KB everywhere: median, max | KiB/s a node: datagrams, streams | MiB a node"

// report is one row of the table.
type report struct {
	nodes            int
	formed           time.Duration
	detected         []time.Duration
	falseDead        int
	arrived, all     []time.Duration
	packets, streams float64 // bytes a second and node
	memory           float64 // bytes a node
}

func (r report) String() string {
	ms := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
	return fmt.Sprintf("%5d | %s | %s, %s | %d | %s, %s | %s, %s | %.2f, %.2f | %.2f", r.nodes, ms(r.formed),
		ms(quantile(r.detected, 0.5)), ms(quantile(r.detected, 1)), r.falseDead,
		ms(quantile(r.arrived, 0.5)), ms(quantile(r.arrived, 0.99)), ms(quantile(r.all, 0.5)), ms(quantile(r.all, 1)),
		r.packets/1024, r.streams/1024, r.memory/(1<<20))
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(q*float64(len(d)-1))]
}

// run measures one cluster.
func run(t *testing.T, n int) report {
	r := report{nodes: n}
	rng := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // chances are to be repeatable
	before := heap()
	c := simulate.NewCluster(simulate.NewNetwork(uint64(n)), n) //nolint:gosec // small
	defer func() {
		if err := c.StopAll(); err != nil {
			t.Errorf("stop: %v", err)
		}
		simulate.Pass(time.Minute)
	}()
	rounds := 120
	if n > 100 || os.Getenv("MOOT_SIM") == "" { // where each takes long, or nobody looks
		rounds = 30
	}
	r.formed = form(t, c)
	simulate.Pass(10 * time.Second)
	r.memory = (heap() - before) / float64(n)
	r.packets, r.streams = idle(c)
	r.arrived, r.all = spread(t, c, rng, rounds/3)
	r.falseDead = trouble(t, c, rng, rounds)
	r.detected = deaths(t, c, rng)
	return r
}

func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) + float64(m.StackInuse)
}

// form starts all nodes, ten a second and more the more there are.
func form(t *testing.T, c *simulate.Cluster) time.Duration {
	t.Helper()
	began := time.Now()
	for i, n := range c.Nodes {
		var seeds []netip.AddrPort
		if i > 0 {
			seeds = []netip.AddrPort{c.Nodes[0].Addr, c.Nodes[i/2].Addr}
		}
		if err := n.Start(seeds...); err != nil {
			t.Fatal(err)
		}
		simulate.Pass(10 * time.Second / time.Duration(max(100, len(c.Nodes))))
	}
	last := 0
	_, ok := simulate.Await(5*time.Minute, 200*time.Millisecond, func() bool {
		for last < len(c.Nodes) && alive(c.Nodes[last]) == len(c.Nodes) {
			last++
		}
		return last == len(c.Nodes)
	})
	if !ok {
		t.Fatalf("node %d of %d knows %d members", last, len(c.Nodes), alive(c.Nodes[last]))
	}
	return time.Since(began)
}

func alive(n *simulate.Node) int {
	k := 0
	for _, m := range n.Agent.Members() {
		if m.State == gossip.StateAlive {
			k++
		}
	}
	return k
}

// idle returns the bytes that a node sends in a second with nothing going on.
func idle(c *simulate.Cluster) (packets, streams float64) {
	total := func() (p, s uint64) {
		for _, n := range c.Nodes {
			a, b := c.Net.Sent(n.Addr)
			p, s = p+a, s+b
		}
		return p, s
	}
	const seconds = 10
	p0, s0 := total()
	simulate.Pass(seconds * time.Second)
	p1, s1 := total()
	per := float64(seconds * len(c.Nodes))
	return float64(p1-p0) / per, float64(s1-s0) / per
}

// spread writes objects of 5 KB at random nodes and returns after which time
// they arrived at each other node, and at the last.
func spread(t *testing.T, c *simulate.Cluster, rng *rand.Rand, rounds int) (arrived, all []time.Duration) {
	t.Helper()
	value := fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("x", 5000))
	for i := range rounds {
		key := fmt.Sprintf("/registry/pods/default/p%d", i)
		writer := c.Nodes[rng.IntN(len(c.Nodes))]
		began := time.Now()
		if err := writer.Memory().Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
		rest := slices.DeleteFunc(slices.Clone(c.Nodes), func(n *simulate.Node) bool { return n == writer })
		_, ok := simulate.Await(time.Minute, time.Millisecond, func() bool {
			rest = slices.DeleteFunc(rest, func(n *simulate.Node) bool {
				_, has := n.Memory().Get(key)
				if has {
					arrived = append(arrived, time.Since(began))
				}
				return has
			})
			return len(rest) == 0
		})
		if !ok {
			t.Fatalf("%d nodes have not got an object after a minute", len(rest))
		}
		all = append(all, time.Since(began))
		simulate.Pass(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
	}
	return arrived, all
}

// trouble loses one datagram in a hundred and takes nodes off the network for
// up to 0.7 s, and counts how often a member is held dead that is not.
func trouble(t *testing.T, c *simulate.Cluster, rng *rand.Rand, rounds int) int {
	t.Helper()
	c.Net.Lose(0.01)
	defer c.Net.Lose(0)
	wrong := 0
	held := map[string]bool{}
	began := time.Now()
	for range rounds {
		n := c.Nodes[rng.IntN(len(c.Nodes))]
		c.Net.Dark(n.Addr.Addr())
		simulate.Pass(time.Duration(rng.Int64N(int64(700 * time.Millisecond))))
		c.Net.Light(n.Addr.Addr())
		simulate.Pass(time.Duration(rng.Int64N(int64(2 * time.Second))))
		for range 20 {
			o := c.Nodes[rng.IntN(len(c.Nodes))]
			for _, m := range o.Agent.Members() {
				k := o.Name + " " + m.Name
				if dead := m.State == gossip.StateDead; dead != held[k] {
					held[k] = dead
					if dead {
						wrong++
						t.Logf("%v: %s holds %s dead; last off the network was %s", time.Since(began), o.Name, m.Name, n.Name)
					}
				}
			}
		}
	}
	simulate.Pass(20 * time.Second)
	return wrong
}

// deaths takes the power from nodes, one after the other, and returns after
// which time all others held each dead.
func deaths(t *testing.T, c *simulate.Cluster, rng *rand.Rand) []time.Duration {
	t.Helper()
	var out []time.Duration
	for range min(5, len(c.Nodes)/2) {
		up := slices.DeleteFunc(slices.Clone(c.Nodes), func(n *simulate.Node) bool { return n.Agent == nil })
		n := up[rng.IntN(len(up))]
		if err := n.Crash(); err != nil {
			t.Fatal(err)
		}
		rest := slices.DeleteFunc(up, func(o *simulate.Node) bool { return o == n })
		took, ok := simulate.Await(time.Minute, 20*time.Millisecond, func() bool {
			rest = slices.DeleteFunc(rest, func(o *simulate.Node) bool { return holdsDead(o, n.Name) })
			return len(rest) == 0
		})
		if !ok {
			t.Fatalf("%d nodes do not know of a death after a minute", len(rest))
		}
		out = append(out, took)
		simulate.Pass(time.Duration(rng.Int64N(int64(5 * time.Second))))
	}
	return out
}

func holdsDead(n *simulate.Node, name string) bool {
	for _, m := range n.Agent.Members() {
		if m.Name == name {
			return m.State == gossip.StateDead
		}
	}
	return false
}
