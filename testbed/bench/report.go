package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// report prints the tables: a column a side and, with two, their ratio.
func report(w io.Writer, sides []*side) error {
	t := &table{w: w, sides: sides}
	t.head("Start of the daemon, medians over rounds")
	for _, kind := range []string{startEmpty, startRestart, startReboot} {
		t.seconds(kind+": API ready", func(s *side) []time.Duration {
			return column(s.results.starts[kind], func(r startResult) time.Duration { return r.API })
		})
		t.seconds(kind+": node Ready", func(s *side) []time.Duration {
			return column(s.results.starts[kind], func(r startResult) time.Duration { return r.Node })
		})
		t.seconds(kind+": says READY", func(s *side) []time.Duration {
			return column(s.results.starts[kind], func(r startResult) time.Duration { return r.Said })
		})
	}
	t.head("Pod start, image present, as a watch sees it")
	t.podRows()
	t.head("Idle, with pods and objects")
	t.idleRows()
	return t.err
}

func (t *table) podRows() {
	running := func(s *side) []time.Duration {
		return column(s.results.pods, func(p podTimes) time.Duration { return p.Running })
	}
	t.seconds("apply to bound, p50", func(s *side) []time.Duration {
		return column(s.results.pods, func(p podTimes) time.Duration { return p.Bound })
	})
	t.seconds("apply to sandbox and network, p50", func(s *side) []time.Duration {
		return column(s.results.pods, func(p podTimes) time.Duration { return p.Sandbox })
	})
	t.seconds("apply to Running, p50", running)
	t.row("apply to Running, slowest", "s", func(s *side) (float64, bool) {
		runs := running(s)
		if len(runs) == 0 {
			return 0, false
		}
		return slices.Max(runs).Seconds(), true
	})
	t.row("runs", "", func(s *side) (float64, bool) { return float64(len(s.results.pods)), true })
	t.seconds("CPU of the node for one pod, median", func(s *side) []time.Duration { return s.results.podCPU })
	t.seconds("batch: apply to the last Running", func(s *side) []time.Duration { return s.results.batch })
	t.seconds("CPU of the node for the batch", func(s *side) []time.Duration { return s.results.batchPU })
}

func (t *table) idleRows() {
	number := func(label, unit string, of func(*idleUse) float64) {
		t.row(label, unit, func(s *side) (float64, bool) {
			if s.results.idle == nil {
				return 0, false
			}
			return of(s.results.idle), true
		})
	}
	const mb = 1e6
	number("daemons, anonymous memory", "MB", func(u *idleUse) float64 { return float64(u.DaemonAnon) / mb })
	t.row("the same after a forced collection", "MB", func(s *side) (float64, bool) {
		if s.results.idle == nil || s.results.idle.AfterGC == 0 {
			return 0, false
		}
		return float64(s.results.idle.AfterGC) / mb, true
	})
	number("one shim, anonymous memory, median", "MB", func(u *idleUse) float64 { return float64(u.ShimAnon) / mb })
	number("shims", "", func(u *idleUse) float64 { return float64(u.Shims) })
	number("daemons, CPU of one core", "%", func(u *idleUse) float64 { return 100 * u.DaemonCPU })
	number("whole node, CPU of one core", "%", func(u *idleUse) float64 { return 100 * u.NodeCPU })
	number("written to disk a second", "B", func(u *idleUse) float64 { return u.Written })
	number("quiet after", "s", func(u *idleUse) float64 { return u.Settled.Seconds() })
	for _, s := range t.sides {
		if s.results.idle == nil || len(s.results.idle.ByName) < 2 {
			continue
		}
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(s.results.idle.ByName)) {
			parts = append(parts, fmt.Sprintf("%s %.1f %% %.0f MB", name,
				100*s.results.idle.ByName[name], float64(s.results.idle.AnonByName[name])/mb))
		}
		t.print("\n%s: %s\n", s.name, strings.Join(parts, ", "))
	}
}

// table writes Markdown and keeps the first error.
type table struct {
	w     io.Writer
	sides []*side
	err   error
}

func (t *table) print(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

func (t *table) head(title string) {
	t.print("\n### %s\n\n|  |", title)
	for _, s := range t.sides {
		t.print(" %s |", s.name)
	}
	if len(t.sides) == 2 {
		t.print(" ratio |")
	}
	t.print("\n|---|%s\n", strings.Repeat("--:|", len(t.sides)+len(t.sides)/2))
}

// row prints one figure of each side.
func (t *table) row(label, unit string, of func(*side) (float64, bool)) {
	t.print("| %s |", label)
	var values []float64
	for _, s := range t.sides {
		v, ok := of(s)
		if !ok {
			t.print(" – |")
			continue
		}
		values = append(values, v)
		t.print(" %s |", strings.TrimSpace(format(v)+" "+unit))
	}
	if len(t.sides) == 2 {
		if len(values) == 2 && values[1] != 0 {
			t.print(" %.2f |", values[0]/values[1])
		} else {
			t.print(" – |")
		}
	}
	t.print("\n")
}

func format(v float64) string {
	if v == float64(int64(v)) || v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// seconds prints medians.
func (t *table) seconds(label string, of func(*side) []time.Duration) {
	t.row(label, "s", func(s *side) (float64, bool) {
		values := of(s)
		if len(values) == 0 {
			return 0, false
		}
		return median(values).Seconds(), true
	})
}

func column[T, V any](rows []T, of func(T) V) []V {
	out := make([]V, 0, len(rows))
	for _, r := range rows {
		out = append(out, of(r))
	}
	return out
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
