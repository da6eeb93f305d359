package years

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestYears plays histories of clusters of two to seven nodes, of MOOT_YEARS
// node-hours altogether, from seed MOOT_SEED on.
func TestYears(t *testing.T) {
	goal, seed := 500.0, uint64(1)
	if n, err := strconv.ParseFloat(os.Getenv("MOOT_YEARS"), 64); err == nil {
		goal = n
	}
	if n, err := strconv.ParseUint(os.Getenv("MOOT_SEED"), 10, 64); err == nil {
		seed = n
	}
	var all Report
	began, told := time.Now(), time.Now()
	for all.NodeHours < goal && len(all.Violations) == 0 {
		all.Add(Run(history(seed, min(1000, int(goal)))))
		seed++
		if time.Since(told) > time.Minute {
			told = time.Now()
			t.Logf("%.0f node-hours in %.0f s, next seed %d", all.NodeHours, time.Since(began).Seconds(), seed)
		}
	}
	t.Logf("\n%s\n%.1f s", &all, time.Since(began).Seconds())
	for _, v := range all.Violations {
		t.Error(v)
	}
}

// history is the one of a seed.
func history(seed uint64, hours int) Config {
	return Config{Seed: seed, Nodes: 2 + int(seed*7%6), Hours: hours} //nolint:gosec // small
}

// TestReplaysExactly: a seed makes one history.
func TestReplaysExactly(t *testing.T) {
	a, b := Run(history(3, 100)), Run(history(3, 100))
	if a.Trace != b.Trace || a.Events != b.Events || a.String() != b.String() {
		t.Errorf("two histories of one seed:\n%s\n%s", &a, &b)
	}
	if c := Run(history(4, 100)); c.Trace == a.Trace {
		t.Error("two seeds have one trace")
	}
}

// TestBrokenRulesAreFound breaks each rule in turn: some history shows it. It
// tries the rule that takes least, and all of them with MOOT_YEARS.
func TestBrokenRulesAreFound(t *testing.T) {
	rules := []Break{BreakMerge}
	if os.Getenv("MOOT_YEARS") != "" {
		rules = Breaks()
	}
	for _, rule := range rules {
		t.Run(string(rule), func(t *testing.T) {
			total := 0.0
			for seed := uint64(1); total < 100_000; seed++ {
				cfg := history(seed, 1000)
				cfg.Break = rule
				r := Run(cfg)
				total += r.NodeHours
				if len(r.Violations) > 0 {
					t.Logf("found after %.0f node-hours: %.200s", total, r.Violations[0])
					return
				}
			}
			t.Errorf("not found in %.0f node-hours", total)
		})
	}
}
