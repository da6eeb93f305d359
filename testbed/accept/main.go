// Command accept runs the scenarios by which a cluster of many nodes is
// accepted, each on a cluster of its own that is taken down afterwards, and
// prints what they measured. The exit status is 1 when a promise did not hold,
// or when anything is left on the machine.
//
//	accept [--nodes N] [--rounds N] [--for DURATION] [--cut DURATION] [--seed N] NAME...
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed"
	"github.com/mootkube/moot/testbed/scenario"
)

func main() {
	testbed.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "accept:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	bin     string
	logs    string
	nodes   int
	rounds  int
	objects int
	soak    time.Duration
	hold    time.Duration
	wait    time.Duration
	seed    uint64
	ways    []string
	verbose bool
}

func newRoot() *cobra.Command {
	set := settings{bin: "bin", nodes: 5, rounds: 3, objects: 100_000, soak: 30 * time.Minute, hold: time.Minute, wait: 5 * time.Minute, seed: rand.Uint64N(1e9),
		ways: []string{deadNode, scenario.LeaderLeave, scenario.LeaderCrash, scenario.LeaderKill, scenario.LeaderStop}}
	if d, err := time.ParseDuration(os.Getenv("MOOT_SOAK")); err == nil {
		set.soak = d
	}
	var names []string
	for _, t := range trials() {
		names = append(names, fmt.Sprintf("  %-9s %s", t.name, t.about))
	}
	cmd := &cobra.Command{
		Use:           "accept NAME...",
		Short:         "Try the promises of a cluster of many nodes, and print what was measured",
		Long:          "Try the promises of a cluster of many nodes, and print what was measured.\n\n" + strings.Join(names, "\n"),
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := set.run(cmd.Context(), name); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&set.bin, "bin", set.bin, "directory of the binaries")
	f.StringVar(&set.logs, "logs", set.logs, "directory for the daemons' logs when a scenario fails")
	f.IntVar(&set.nodes, "nodes", set.nodes, "how many nodes")
	f.IntVar(&set.rounds, "rounds", set.rounds, "how often what is timed is repeated")
	f.IntVar(&set.objects, "objects", set.objects, "how many objects a new machine takes over")
	f.DurationVar(&set.soak, "for", set.soak, "how long the chaos lasts (MOOT_SOAK)")
	f.DurationVar(&set.hold, "cut", set.hold, "how long a cut lasts")
	f.DurationVar(&set.wait, "patience", set.wait, "how long a condition is waited for")
	f.Uint64Var(&set.seed, "seed", set.seed, "draws the faults")
	f.StringSliceVar(&set.ways, "ways", set.ways, "what goes in the failover: a node that does not lead, or the leader in one of the ways")
	f.BoolVarP(&set.verbose, "verbose", "v", false, "tell what the testbed does")
	return cmd
}

// trial is one line of what is accepted.
type trial struct {
	name, about string
	run         func(context.Context, *scenario.Bed, settings) error
	nodes       int // how many it wants, whatever is set; 0: any
}

func trials() []trial {
	return []trial{
		{"watch", "a change through one node is seen by a watch on another; equal digests", watchTrial, 0},
		{"keep", "keys are rotated under writes; a backup goes into a living and into a new cluster", keepTrial, 0},
		{"roam", "clients moved between nodes hundreds of times under write load miss nothing", roamTrial, 0},
		{"outage", "all nodes but one crash, the leader first; the last one serves; all come back", outageTrial, 0},
		{"cut", "the cluster is cut for a minute, with edits on both sides, and heals", cutTrial, 0},
		{"join", "a new machine takes over many objects, and serves them", joinTrial, 2},
		{"chaos", "kills and crashes at random moments under write load lose no acknowledged write", chaosTrial, 0},
		{"failover", "how long until a dead node's pods run elsewhere, and until the next leader acts", failoverTrial, 0},
		{"blink", "a pause of a second and restarts of the daemon move nothing", blinkTrial, 0},
		{"offline", "a node that boots with no network, all others down, runs its pods and serves", offlineTrial, 0},
		{"putback", "a disk is led back to a snapshot, and its node writes alone: nothing is missing", putBackTrial, 0},
		{"services", "Services of every kind answer from everywhere, evenly, by their policies", servicesTrial, 3},
		{"drop", "clients that connect every 10 ms notice no restart, and a dead node for a second", dropTrial, 3},
		{"names", "names of every kind resolve on every node; the dead are left out within seconds", namesTrial, 3},
		{"traces", "no eBPF program, map or link is left of a cluster that is gone", tracesTrial, 3},
		{"stranger", "port scan, garbage, replayed packets, no token: nothing leaks, nothing crashes", strangerTrial, 0},
	}
}

func (set settings) run(ctx context.Context, name string) error {
	for _, t := range trials() {
		if t.name != name {
			continue
		}
		bin, err := filepath.Abs(set.bin)
		if err != nil {
			return err
		}
		if t.nodes > 0 {
			set.nodes = t.nodes
		}
		o := scenario.Options{Bin: bin, Nodes: set.nodes, Out: os.Stdout, Patience: set.wait, BPF: t.name == "traces"}
		if set.logs != "" {
			o.Logs = filepath.Join(set.logs, name)
		}
		if set.verbose {
			o.Progress = os.Stderr
		}
		_, _ = fmt.Fprintf(os.Stdout, "== %s: %s\n   %s, %d processors, load %s\n", t.name, t.about, time.Now().Format(time.DateTime), runtime.NumCPU(), load())
		began := time.Now()
		err = scenario.Run(ctx, o, func(ctx context.Context, b *scenario.Bed) error { return t.run(ctx, b, set) })
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(os.Stdout, "== %s: held, in %.0f s, and nothing is left on this machine\n", t.name, time.Since(began).Seconds())
		return nil
	}
	return errors.New("no such scenario: accept --help lists them")
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func watchTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	return b.Spread(ctx, b.Nodes[max(0, len(b.Nodes)-2)], 300, 5<<10, 50*time.Millisecond)
}

func keepTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	if err := b.Rotate(ctx); err != nil {
		return err
	}
	return b.Restore(ctx, true)
}

func roamTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	return b.Roam(ctx, 400, set.seed)
}

func outageTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	all := len(b.Nodes) - 1
	// The leader first, and each next leader after it.
	if err := b.Outage(ctx, make([]string, all)); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(set.seed, 0))
	for range max(0, set.rounds-1) {
		var order []string
		for _, i := range rnd.Perm(len(b.Nodes))[:all] {
			order = append(order, b.Nodes[i])
		}
		if err := b.Outage(ctx, order); err != nil {
			return err
		}
	}
	return nil
}

func cutTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	half := len(b.Nodes) / 2
	return b.Split(ctx, b.Nodes[:half], b.Nodes[half:], set.hold)
}

func chaosTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	return b.Chaos(ctx, set.soak, 20, set.seed)
}

func joinTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	return b.Join(ctx, set.objects, 5000, set.rounds)
}

// deadNode is what goes when the leader does not.
const deadNode = "node"

func failoverTrial(ctx context.Context, b *scenario.Bed, set settings) error {
	for _, way := range set.ways {
		do := func() error { return b.LeaderGoes(ctx, way, set.rounds) }
		if way == deadNode {
			do = func() error { return b.DeadNode(ctx, set.rounds) }
		}
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func blinkTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	return b.Blink(ctx, time.Second, 20*time.Second, nil)
}

func putBackTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	return b.PutBack(ctx, b.Nodes[len(b.Nodes)-1], 30)
}

func offlineTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	for _, bare := range []bool{false, true} {
		if err := b.Offline(ctx, b.Nodes[len(b.Nodes)-1], bare); err != nil {
			return err
		}
	}
	return nil
}

func servicesTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	return b.Services(ctx, 100, 1200)
}

// dropBound is generous: the figure is printed beside the promise.
const dropBound = 10 * time.Second

func dropTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	return b.Drop(ctx, dropBound)
}

func namesTrial(ctx context.Context, b *scenario.Bed, _ settings) error { return b.Names(ctx) }

func tracesTrial(ctx context.Context, b *scenario.Bed, _ settings) error { return b.Traces(ctx) }

func strangerTrial(ctx context.Context, b *scenario.Bed, _ settings) error {
	if err := b.Stranger(ctx, b.Nodes[0], 30*time.Second, true); err != nil {
		return err
	}
	from := b.Nodes[len(b.Nodes)-1]
	if err := b.Stop(ctx, from); err != nil {
		return err
	}
	if err := b.JoinRefused(ctx, from, b.Nodes[0]); err != nil {
		return err
	}
	return b.Start(ctx, from)
}
