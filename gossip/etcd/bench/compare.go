package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// load is one row of the tables.
type load struct {
	name string
	run  func(ctx context.Context, v *server) (*measure, error)
}

// compare starts both servers, runs every load on them in turn and prints.
func compare(ctx context.Context, s settings) (err error) {
	var servers []*server
	defer func() {
		for _, v := range servers {
			err = errors.Join(err, v.stop())
			if note := v.members[0].note; note != "" {
				fmt.Printf("Member 1 of %s: %s.\n", v.name, note)
			}
		}
	}()
	names := []string{"moot", "etcd"}
	if s.floor {
		names = append(names, "floor")
	}
	for _, name := range names {
		v, err := start(ctx, name, s)
		if err != nil {
			return err
		}
		servers = append(servers, v)
		if err := fill(ctx, v, s.objects); err != nil {
			return err
		}
	}
	busy, err := machineLoad()
	if err != nil {
		return err
	}
	sync, err := syncTime(s.dir)
	if err != nil {
		return err
	}
	fmt.Printf("etcd API: this store against etcd, members on each side: %d, same disk, same run\n\n", s.members)
	fmt.Printf("%s; %d processors; one 4 KiB write and fdatasync on the disk: %v median; load before: %s; %d rounds of %v\n\n",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), sync, busy, s.rounds, s.period)
	fmt.Println("| load | | op/s | p50 | p99 | server CPU per op |")
	fmt.Println("|---|---|---:|---:|---:|---:|")
	for _, l := range loads(s) {
		if !strings.Contains(l.name, s.only) {
			continue
		}
		results := make([][]*measure, len(servers))
		for round := range s.rounds {
			for i := range servers {
				i := (i + round) % len(servers) // neither always goes first
				m, err := l.run(ctx, servers[i])
				if err != nil {
					return err
				}
				results[i] = append(results[i], m)
			}
		}
		printRow(l.name, servers, results)
	}
	fmt.Println()
	for _, v := range servers[:2] {
		if err := v.agree(ctx); err != nil {
			return err
		}
		for _, p := range v.members {
			all, own, err := p.memoryMB()
			if err != nil {
				return err
			}
			fmt.Printf("Member %d of %s holds %d MB of memory at the end, %d MB of it anonymous.\n", p.number, v.name, all, own)
		}
	}
	return nil
}

func loads(s settings) []load {
	var out []load
	for _, clients := range s.clients {
		out = append(out, load{fmt.Sprintf("optimistic put, %d clients", clients), func(ctx context.Context, v *server) (*measure, error) {
			return writes(ctx, v, clients, s.period)
		}})
	}
	read := func(name string, clients int, op operation) {
		out = append(out, load{fmt.Sprintf("%s, %d clients", name, clients), func(ctx context.Context, v *server) (*measure, error) {
			return drive(ctx, v, clients, s.period, op)
		}})
	}
	for _, clients := range []int{1, 16} {
		read("get", clients, get(s.objects))
		read(fmt.Sprintf("list of %d in pages of %d", s.objects, page), clients, pagedList(s.objects))
		read(fmt.Sprintf("list of %d streamed", s.objects), clients, streamedList)
	}
	return out
}

// summary has the medians over the rounds of one load on one server.
type summary struct {
	perSecond float64
	p50, p99  time.Duration
	cpu       time.Duration // of the server, an operation
}

func summarise(rounds []*measure) summary {
	return summary{
		perSecond: medianOf(rounds, func(m *measure) float64 { return m.perSecond() }),
		p50:       medianOf(rounds, func(m *measure) time.Duration { return m.quantile(0.5) }),
		p99:       medianOf(rounds, func(m *measure) time.Duration { return m.quantile(0.99) }),
		cpu:       medianOf(rounds, func(m *measure) time.Duration { return m.cpu / time.Duration(max(1, m.operations)) }),
	}
}

func medianOf[T float64 | time.Duration](rounds []*measure, of func(*measure) T) T {
	values := make([]T, len(rounds))
	for i, m := range rounds {
		values[i] = of(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// printRow prints what each server did, and what those that are not etcd did to it.
func printRow(name string, servers []*server, results [][]*measure) {
	etcd := summarise(results[1])
	ratio := func(a, b time.Duration) string { return fmt.Sprintf("×%.2f", float64(a)/float64(max(b, 1))) }
	for i, v := range servers {
		s := summarise(results[i])
		fmt.Printf("| %s | %s | %.0f | %v | %v | %v |\n", name, v.name, s.perSecond, round(s.p50), round(s.p99), round(s.cpu))
		name = ""
	}
	for i, v := range servers {
		if s := summarise(results[i]); i != 1 {
			fmt.Printf("| | **%s to etcd** | **×%.2f** | %s | **%s** | %s |\n", v.name,
				s.perSecond/etcd.perSecond, ratio(s.p50, etcd.p50), ratio(s.p99, etcd.p99), ratio(s.cpu, etcd.cpu))
		}
	}
}

func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Millisecond:
		return d.Round(100 * time.Microsecond)
	case d > time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// machineLoad returns the load averages, which say how far to trust the figures.
func machineLoad() (string, error) {
	b, err := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(b))[:3], " "), err
}

// syncTime measures the disk alone.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	block := []byte(strings.Repeat("x", 4096))
	times := make([]time.Duration, 200)
	for i := range times {
		begin := time.Now()
		if _, err := f.WriteAt(block, int64(i%16)*4096); err != nil {
			return 0, err
		}
		if err := dataSync(f); err != nil {
			return 0, err
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	return round(times[len(times)/2]), nil
}
