package store

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

var testEpoch = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestCeiling(t *testing.T) {
	rev := func(d time.Duration) crdt.Revision { return crdt.RevisionAt(testEpoch.Add(d), 7) }
	cases := map[string]struct {
		reserved crdt.Revision
		last     crdt.Revision
		want     crdt.Revision
		low      bool
	}{
		"first start":            {0, rev(0), rev(time.Hour), true},
		"with the clock":         {rev(time.Hour), rev(0), rev(time.Hour), false},
		"half used":              {rev(29 * time.Minute), rev(0), rev(time.Hour), true},
		"a little ahead":         {rev(time.Hour), rev(aheadReserve), rev(time.Hour), false},
		"after a crash":          {rev(time.Hour), rev(time.Hour) + 1<<16, rev(time.Hour+aheadReserve) + 1<<16, true},
		"ahead, little left":     {rev(time.Hour), rev(time.Hour - aheadReserve/4), rev(time.Hour + aheadReserve*3/4), true},
		"ahead, enough left":     {rev(time.Hour), rev(time.Hour - aheadReserve*3/4), rev(time.Hour + aheadReserve/4), false},
		"ahead, never down":      {rev(2 * time.Hour), rev(time.Hour), rev(2 * time.Hour), false},
		"clock far behind again": {rev(0), rev(24 * time.Hour), rev(24*time.Hour + aheadReserve), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			reserved := ceiling{rev: c.reserved, seq: 10_000}
			if got := reserved.raise(c.last, 10, testEpoch, time.Hour); got.rev != c.want {
				t.Errorf("raised to %s, want %s", got.rev, c.want)
			}
			if got := reserved.low(c.last, 10, testEpoch, time.Hour); got != c.low {
				t.Errorf("low is %v, want %v", got, c.low)
			}
		})
	}
	c := ceiling{rev: rev(time.Hour), seq: 5000}
	if !c.covers(rev(0), 5000) || c.covers(rev(0), 5001) || c.covers(c.rev+1, 1) {
		t.Error("covers is wrong")
	}
	if c.low(rev(0), 5000-sequenceReserve/2, testEpoch, time.Hour) {
		t.Error("half the sequences left is low")
	}
	if got := c.firstRevision(testEpoch, 9); got <= c.rev || got.Node() != 9 {
		t.Errorf("first revision is %s", got)
	}
}

// TestReserveRunsOut: changes that never reach the disk use up what was
// reserved; a crash with the clock set back must not issue a revision again.
func TestReserveRunsOut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := testConfig(t)
	cfg.FS = fs
	var ahead atomic.Int64 // of testEpoch
	cfg.Now = func() time.Time { return testEpoch.Add(time.Duration(ahead.Load())) }
	s, _ := start(t, cfg)
	var last int64
	for range 20 {
		ahead.Add(int64(17 * time.Minute))
		last = put(t, s, "/registry/leases/kube-system/x", "renewed")
	}
	cfg.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	cfg.Now = func() time.Time { return testEpoch }
	s, _ = start(t, cfg)
	if s.Revision() <= last {
		t.Errorf("revision %d may be issued again after %d", s.Revision(), last)
	}
}
