package simulate_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/simulate"
)

// objectBytes is what an object of Kubernetes is on average, about.
const objectBytes = 1024

// TestObjects fills clusters of the sizes that MOOT_SIM lists with as many
// objects of 1 KB as MOOT_OBJECTS lists, one number after the other, and prints
// what that costs a node: memory, and bytes sent when idle and for a change. A
// node of the simulation holds all values in memory, which a store does not: the
// column beside says how much they are. Bytes are before TLS.
func TestObjects(t *testing.T) {
	sizes, counts := numbers(t, "MOOT_SIM", 5), numbers(t, "MOOT_OBJECTS", 100)
	slices.Sort(counts)
	rows := []string{objectsHeader}
	for _, n := range sizes {
		synctest.Test(t, func(t *testing.T) {
			for _, r := range costs(t, n, counts) {
				rows = append(rows, r.String())
			}
		})
		t.Logf("\n%s", strings.Join(rows, "\n"))
	}
}

// numbers reads a list of numbers from the environment.
func numbers(t *testing.T, name string, otherwise int) []int {
	t.Helper()
	list := os.Getenv(name)
	if list == "" {
		return []int{otherwise}
	}
	var out []int
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 3 {
			t.Fatalf("%s: %q is no number of 3 or more", name, s)
		}
		out = append(out, n)
	}
	return out
}

const objectsHeader = "nodes | objects | MiB a node | of them values | idle KiB/s a node: datagrams, streams | bytes a node sends for a change"

// cost is one row of the table.
type cost struct {
	nodes, objects   int
	memory, values   float64 // bytes a node
	packets, streams float64 // bytes a second and node
	change           float64 // bytes a node
}

func (c cost) String() string {
	return fmt.Sprintf("%5d | %6d | %.2f | %.2f | %.2f, %.2f | %.0f", c.nodes, c.objects, c.memory/(1<<20), c.values/(1<<20), c.packets/1024, c.streams/1024, c.change)
}

// costs measures one cluster with ever more objects.
func costs(t *testing.T, n int, counts []int) (out []cost) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(n), 2)) //nolint:gosec // chances are to be repeatable
	before := heap()
	c := simulate.NewCluster(simulate.NewNetwork(uint64(n)), n) //nolint:gosec // small
	defer func() {
		if err := c.StopAll(); err != nil {
			t.Errorf("stop: %v", err)
		}
		simulate.Pass(time.Minute)
	}()
	form(t, c)
	have := 0
	for _, count := range slices.Concat([]int{0}, counts) {
		var group sync.WaitGroup
		const writers = 32
		for w := range writers {
			group.Go(func() {
				for i := have + w; i < count; i += writers {
					putObject(t, c.Nodes[i%n], i, 0)
				}
			})
		}
		group.Wait()
		have = count
		everywhere(t, c)
		simulate.Pass(10 * time.Second)
		r := cost{nodes: n, objects: count, memory: (heap() - before) / float64(n), values: float64(count * objectBytes)}
		r.packets, r.streams = idle(c)
		if count > 0 {
			r.change = change(t, c, rng, count, r.packets+r.streams)
			if n <= gossip.DefaultConfig().Mesh && r.change > 2*objectBytes {
				t.Errorf("%d nodes: a change of %d bytes costs each %.0f: some get it twice", n, objectBytes, r.change)
			}
		}
		out = append(out, r)
	}
	return out
}

// putObject writes version v of object i.
func putObject(t *testing.T, n *simulate.Node, i, v int) {
	t.Helper()
	head := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"object-%d","namespace":"default","uid":"%08x-0000-4000-8000-000000000000"},"data":{"v":"%d","x":"`, i, i, v)
	value := fmt.Appendf(nil, `%s%s"}}`, head, strings.Repeat("x", objectBytes-len(head)-3))
	if err := n.Memory().Put(t.Context(), fmt.Sprintf("/registry/configmaps/default/object-%d", i), value); err != nil {
		t.Error(err)
	}
}

// everywhere waits until all nodes have all that was written.
func everywhere(t *testing.T, c *simulate.Cluster) {
	t.Helper()
	all := crdt.Vector{}
	for _, n := range c.Nodes {
		all.Join(n.Memory().Vector())
	}
	rest := slices.Clone(c.Nodes)
	_, ok := simulate.Await(10*time.Minute, 10*time.Millisecond, func() bool {
		rest = slices.DeleteFunc(rest, func(n *simulate.Node) bool { return n.Memory().Vector().Includes(all) })
		return len(rest) == 0
	})
	if !ok {
		t.Fatalf("%d nodes have not got all objects after ten minutes", len(rest))
	}
}

// change changes objects, each alone, and returns the bytes that a node sends
// for one, beside what it sends anyway.
func change(t *testing.T, c *simulate.Cluster, rng *rand.Rand, objects int, idle float64) float64 {
	t.Helper()
	const changes, every = 100, 200 * time.Millisecond
	sent := func() (sum uint64) {
		for _, n := range c.Nodes {
			p, s := c.Net.Sent(n.Addr)
			sum += p + s
		}
		return sum
	}
	began, before := time.Now(), sent()
	for v := range changes {
		putObject(t, c.Nodes[rng.IntN(len(c.Nodes))], rng.IntN(objects), v+1)
		simulate.Pass(every)
	}
	everywhere(t, c)
	each := float64(sent()-before)/float64(len(c.Nodes)) - idle*time.Since(began).Seconds()
	return each / changes
}
