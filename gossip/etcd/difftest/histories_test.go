package difftest

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this one history")
	forFlag   = flag.Duration("for", 0, "how long to go on with new histories (default 20s, or MOOT_SOAK)")
	stepsFlag = flag.Int("steps", 1500, "operations a history")
)

func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		runHistory(t, *seedFlag, *stepsFlag)
		return
	}
	// The same histories every time, unless it was asked for more.
	period, first := *forFlag, uint64(time.Now().UnixNano())%1_000_000_000
	if period == 0 {
		period, first = 20*time.Second, 1
		if soak := os.Getenv("MOOT_SOAK"); soak != "" {
			var err error
			if period, err = time.ParseDuration(soak); err != nil {
				t.Fatalf("parse MOOT_SOAK: %v", err)
			}
			first = uint64(time.Now().UnixNano()) % 1_000_000_000
		}
	}
	end := time.Now().Add(period)
	for i := uint64(0); i == 0 || time.Now().Before(end); i++ {
		seed := first + i
		t.Logf("seed %d", seed)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runHistory(t, seed, *stepsFlag) })
		if t.Failed() {
			return
		}
	}
}
