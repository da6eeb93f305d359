package gossip_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// TestClockStoodStill: a machine that keeps no time while it is off comes back after
// twenty minutes and finds no time server. It takes in what the others wrote, and
// they what it writes; and once its clock is right, all goes on.
func TestClockStoodStill(t *testing.T) {
	all := machines(t, 3)
	pi := all[2]
	var passed, known atomic.Int64 // of the time, and by the clock that stood still
	for _, m := range all {
		m.stop()
		clock := &passed
		if m == pi {
			clock = &known
		}
		now := func() time.Time { return time.Now().Add(time.Duration(clock.Load())) }
		m.storeCfg.Now, m.cfg.Now = now, now
		m.start(all[0].addr, all[1].addr, all[2].addr)
	}
	eventually(t, "the cluster forms anew", func() bool { return all[0].alive() == 3 && all[1].alive() == 3 && pi.alive() == 3 })
	pi.stop()
	began := time.Now()
	passed.Add(int64(20 * time.Minute))
	for i := range 20 {
		all[i%2].put(fmt.Sprintf("/registry/pods/default/p%d", i), pod(fmt.Sprintf("p%d", i), "1"))
	}
	eventually(t, "the others have clearly run for longer", func() bool { return time.Since(began) > 3*time.Second })
	pi.start(all[1].addr)
	eventually(t, "the one that was off has what the others wrote", func() bool { return agreed(all...) })
	pi.put("/registry/pods/default/late", pod("late", "1"))
	eventually(t, "and they what it writes", func() bool { return agreed(all...) })
	known.Add(int64(20 * time.Minute))
	all[0].put("/registry/pods/default/right", pod("right", "1"))
	eventually(t, "its clock is right, and all goes on", func() bool { return agreed(all...) })
}
