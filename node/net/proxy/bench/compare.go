package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// turns is how often the sides take turns at connecting one by one in a round:
// what else the machine does then meets all alike.
const turns = 40

// idle is how long the proxy has been left alone before a change. kube-proxy
// writes at most once a second.
const idle = 1500 * time.Millisecond

// figures are what was measured of a side with some number of Services, a figure
// a round.
type figures struct {
	side *side
	from [len(places)]struct {
		p50, p99, over []time.Duration // one by one; the median of what p50 was over the direct side's in the same turn
		rate           []float64
		p99AtOnce      []time.Duration
	}
	change, changeBusy []time.Duration // each that was made
}

// places are where clients run.
var places = [...]string{"node", "pod"}

func compare(ctx context.Context, s settings) error {
	before, err := load()
	if err != nil {
		return err
	}
	var all []row
	for _, n := range s.services {
		fmt.Fprintf(os.Stderr, "%s %d Services\n", time.Now().Format(time.TimeOnly), n)
		var r row
		if r, err = measure(ctx, n, s); err != nil {
			break // what was measured is worth telling
		}
		all = append(all, r)
	}
	after, loadErr := load()
	fmt.Printf("%s, %d processors, load %s before and %s after; %d rounds\n", time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), before, after, s.rounds)
	report(all, s)
	return errors.Join(err, loadErr)
}

// load returns the machine's load over the last minute.
func load() (string, error) {
	raw, err := os.ReadFile("/proc/loadavg")
	return strings.SplitN(string(raw), " ", 2)[0], err
}

// measure measures all sides with n Services.
func measure(ctx context.Context, n int, s settings) (r row, err error) {
	r.services = n
	var running []*figures
	defer func() {
		for _, f := range running {
			err = errors.Join(err, f.side.stop())
		}
	}()
	for _, name := range s.sides {
		v, err := start(ctx, name, n, s)
		if err != nil {
			return r, err
		}
		f := &figures{side: v}
		r.sides = append(r.sides, f)
		if v.unstarted == nil {
			running = append(running, f)
			continue
		}
		fmt.Fprintf(os.Stderr, "%s with %d Services is left out: %v\n", name, n, v.unstarted)
		if err := v.stop(); err != nil {
			return r, err
		}
	}
	for round := range s.rounds {
		if len(running) == 0 {
			break
		}
		// None always goes first.
		order := slices.Concat(running[round%len(running):], running[:round%len(running)])
		for place := range places {
			if err := latency(order, place, s); err != nil {
				return r, err
			}
			if err := rate(order, place, s); err != nil {
				return r, err
			}
		}
		if err := changes(order, s); err != nil {
			return r, err
		}
	}
	return r, nil
}

func latency(order []*figures, place int, s settings) error {
	times, over := make([][]time.Duration, len(order)), make([][]time.Duration, len(order))
	for range turns {
		p50 := make([]time.Duration, len(order))
		var base time.Duration
		for i, f := range order {
			a, err := f.side.measure(question{Kind: oneByOne, Pod: place == 1, Count: s.connects / turns})
			if err != nil {
				return err
			}
			times[i] = append(times[i], a.Times...)
			if p50[i] = quantile(a.Times, 50); f.side.name == direct {
				base = p50[i]
			}
		}
		for i := range order {
			over[i] = append(over[i], p50[i]-base)
		}
	}
	for i, f := range order {
		to := &f.from[place]
		to.p50, to.p99 = append(to.p50, quantile(times[i], 50)), append(to.p99, quantile(times[i], 99))
		to.over = append(to.over, median(over[i]))
	}
	return nil
}

func rate(order []*figures, place int, s settings) error {
	for _, f := range order {
		a, err := f.side.measure(question{Kind: atOnce, Pod: place == 1, Clients: s.clients, Period: s.period})
		if err != nil {
			return err
		}
		to := &f.from[place]
		to.rate = append(to.rate, float64(len(a.Times))/a.Took.Seconds())
		to.p99AtOnce = append(to.p99AtOnce, quantile(a.Times, 99))
	}
	return nil
}

func changes(order []*figures, s settings) error {
	for _, f := range order {
		if f.side.name == direct {
			continue
		}
		for _, how := range []struct {
			wait time.Duration
			to   *[]time.Duration
		}{{idle, &f.change}, {0, &f.changeBusy}} {
			a, err := f.side.measure(question{Kind: change, Count: s.changes, Wait: how.wait})
			if err != nil {
				return err
			}
			*how.to = append(*how.to, a.Times...)
		}
	}
	return nil
}

// quantile returns the value below which percent of d are. It sorts d.
func quantile(d []time.Duration, percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)*percent/100, len(d)-1)]
}
