// Command bench measures Services: new connections through a cluster address,
// and how long a change of endpoints takes to reach the kernel, by Moot's eBPF
// programs, by upstream's kube-proxy in its nftables and iptables modes, and to
// the pod directly with no proxy at all, with more and more Services. It prints
// Markdown.
//
// Each side is a process of its own (this program started again) in its own
// network and mount namespace and cgroup: a node with two pods behind devices of
// their own and, but for the direct side, [proxy.Proxy] as the daemon runs it.
// What feeds it is an API server of two hundred lines in the same process, which
// serves the Services and EndpointSlices as kube-apiserver does and nothing else.
// For each number of Services the sides start one after the other, and then take
// turns; figures are medians over the rounds.
//
//	bench -services 1,100,1000,10000,30000 -rounds 3
//
// It needs root, cgroup v2, and the programs nft and iptables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The sides.
const (
	direct   = "direct" // no proxy: clients connect to the pods
	ebpf     = "ebpf"
	nftables = "nftables"
	iptables = "iptables"
)

// settings are the flags.
type settings struct {
	services []int
	sides    []string
	rounds   int
	connects int           // in a round, one at a time
	clients  int           // at once
	period   time.Duration // for which they connect in a round
	changes  int           // of endpoints in a round
	bound    time.Duration // for a start
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == roleNode {
		return runNode(ctx, args[1])
	}
	s, err := parse(args)
	if err != nil {
		return err
	}
	return compare(ctx, s)
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	services := flags.String("services", "1,100,1000,10000,30000", "numbers of Services, each with two endpoints")
	sides := flags.String("sides", "direct,ebpf,nftables,iptables", "what to measure")
	flags.IntVar(&s.rounds, "rounds", 3, "rounds of each side")
	flags.IntVar(&s.connects, "connects", 4000, "connections one at a time in a round")
	flags.IntVar(&s.clients, "clients", 4, "clients that connect at once")
	flags.DurationVar(&s.period, "time", 2*time.Second, "for how long they do in a round")
	flags.IntVar(&s.changes, "changes", 4, "changes of an EndpointSlice in a round, an even number")
	flags.DurationVar(&s.bound, "bound", 10*time.Minute, "a side that does not serve all Services so long after its start is left out")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	for field := range strings.SplitSeq(*services, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || n > maxServices {
			return s, fmt.Errorf("parse -services: %q is not a number from 1 to %d", field, maxServices)
		}
		s.services = append(s.services, n)
	}
	s.sides = strings.Split(*sides, ",")
	for _, side := range s.sides {
		if !slices.Contains([]string{direct, ebpf, nftables, iptables}, side) {
			return s, fmt.Errorf("parse -sides: there is no %q", side)
		}
	}
	if s.rounds < 1 || s.connects < turns || s.clients < 1 || s.changes < 2 || s.changes%2 != 0 {
		return s, fmt.Errorf("-rounds and -clients must be positive, -connects at least %d, -changes even", turns)
	}
	if os.Geteuid() != 0 {
		return s, errors.New("root is needed, to make namespaces")
	}
	return s, nil
}

// pause lets d pass, or returns when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
