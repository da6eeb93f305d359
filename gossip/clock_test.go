package gossip_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// TestClockStoodStill: a machine that keeps no time while it is off comes back after
// twenty minutes and finds no time server. It takes in what the other wrote,
// and that one what it writes; and once its clock is right, all goes on.
func TestClockStoodStill(t *testing.T) {
	all := machines(t, 2)
	other, pi := all[0], all[1]
	var passed, known atomic.Int64 // of the time, and by the clock that stood still
	for _, m := range all {
		m.stop()
		clock := &passed
		if m == pi {
			clock = &known
		}
		now := func() time.Time { return time.Now().Add(time.Duration(clock.Load())) }
		m.storeCfg.Now, m.cfg.Now = now, now
		m.start(other.addr, pi.addr)
	}
	eventually(t, "the cluster forms anew", func() bool { return other.alive() == 2 && pi.alive() == 2 })
	pi.stop()
	began := time.Now()
	passed.Add(int64(20 * time.Minute))
	for i := range 20 {
		other.put(fmt.Sprintf("/registry/pods/default/p%d", i), pod(fmt.Sprintf("p%d", i), "1"))
	}
	eventually(t, "the other has clearly run for longer", func() bool { return time.Since(began) > 3*time.Second })
	pi.start(other.addr)
	eventually(t, "the one that was off has what the other wrote", func() bool { return agreed(all...) })
	pi.put("/registry/pods/default/late", pod("late", "1"))
	eventually(t, "and that one what it writes", func() bool { return agreed(all...) })
	known.Add(int64(20 * time.Minute))
	other.put("/registry/pods/default/right", pod("right", "1"))
	eventually(t, "its clock is right, and all goes on", func() bool { return agreed(all...) })
}
