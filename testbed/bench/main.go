// Command bench measures one node of moot and, in the same run and taking
// turns, one node of upstream Kubernetes made of separate processes on a real
// etcd, and prints what each took as Markdown.
//
// Both live in the same kind of namespaces, made by package testbed; the
// rival's processes are started by this program under another name. A round is
// one side's whole life: an empty start, pods one at a time and in a batch, a
// restart of the daemon after SIGKILL, a reboot. Rounds of the two sides
// alternate and the tables give medians over them. In the last round each side
// is also left idle with pods and objects.
//
// What clients see is measured by this program on the node itself, over its
// API with a watch. What processes use is read from outside, from /proc and
// the node's cgroups.
//
//	bench -moot bin -tools DIR [-sides moot,upstream] [-rounds 3] [-pods 10] [-idle 60s]
//
// It starts no goroutine that outlives a measurement, and needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mootkube/moot/testbed"
)

// The roles in which this program runs on a node.
const (
	roleInside   = "inside"
	roleUpstream = "upstream"
)

// settings are the flags.
type settings struct {
	dir      string // where the clusters live
	moot     string // directory of moot
	tools    string // directory of testbed-web and of the rival's binaries
	sides    string
	rounds   int
	pods     int
	batch    int
	objects  int
	idle     time.Duration
	profiles string
	skip     string
	mootArgs []string
	shares   int
}

func main() {
	testbed.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case roleInside:
			return runInside(ctx, args[1:])
		case roleUpstream:
			return runUpstream(args[1:])
		}
	}
	s, err := parse(args)
	if err != nil {
		return err
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "moot-bench-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(s.dir) }()
	}
	return compare(ctx, s)
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.dir, "dir", "", "directory for the clusters (default a temporary one)")
	flags.StringVar(&s.moot, "moot", "bin", "directory with moot")
	flags.StringVar(&s.tools, "tools", "bin", "directory with testbed-web, and with the rival's binaries; see docs/bench")
	flags.StringVar(&s.sides, "sides", "moot,upstream", "what to measure")
	flags.IntVar(&s.rounds, "rounds", 3, "rounds of each side")
	flags.IntVar(&s.pods, "pods", 10, "pods started one at a time in a round")
	flags.IntVar(&s.batch, "batch", 10, "pods started at once, and running while idle")
	flags.IntVar(&s.objects, "objects", 1000, "ConfigMaps of 1 KB while idle")
	flags.DurationVar(&s.idle, "idle", time.Minute, "how long to look at an idle node; 0 leaves it out")
	flags.StringVar(&s.profiles, "profiles", "", "directory for CPU and heap profiles of moot")
	flags.StringVar(&s.skip, "skip", "", "parts of a round to leave out: pods,restart,reboot")
	flags.IntVar(&s.shares, "shares", 100, "how many times the share of processor time of another process a node gets, against what else runs here")
	flags.Func("moot-arg", "flag for moot up (repeat)", func(arg string) error {
		s.mootArgs = append(s.mootArgs, arg)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if s.rounds < 1 || s.pods < 1 || s.batch < 1 || s.shares < 1 {
		return s, errors.New("-rounds, -pods, -batch and -shares must be positive")
	}
	for _, dir := range []*string{&s.moot, &s.tools, &s.dir, &s.profiles} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return s, err
		}
		*dir = abs
	}
	return s, nil
}

func (s settings) skips(part string) bool { return slices.Contains(strings.Split(s.skip, ","), part) }

func (s settings) measures(side string) bool {
	return slices.Contains(strings.Split(s.sides, ","), side)
}

// ask runs this program on a node and decodes what it answers into answer.
func ask(ctx context.Context, c *testbed.Cluster, question, answer any) error {
	raw, err := json.Marshal(question)
	if err != nil {
		return err
	}
	var out, said strings.Builder
	code, err := c.Exec(ctx, node, testbed.Command{
		Argv: []string{"bench", roleInside, string(raw)}, Stdout: &out, Stderr: &said,
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("measure on %s: exit status %d: %s", node, code, strings.TrimSpace(said.String()))
	}
	if err := json.Unmarshal([]byte(out.String()), answer); err != nil {
		return fmt.Errorf("measure on %s: %w", node, err)
	}
	return nil
}
