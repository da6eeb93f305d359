package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
)

// How much of what the live heap holds may be garbage before it is collected, in
// percent. An idle node is to be small, a busy one to spend its processors on
// other things: between the two lies a tenth of its processor time.
const (
	gcIdle = 50
	gcBusy = 200
)

const (
	gcLook = time.Second
	gcMany = 2  // collections from one look to the next that a busy node has
	gcRest = 10 // looks with fewer together than that make it an idle one
)

// gcPace decides how much garbage there may be, look by look. Its zero value is
// an idle node's.
type gcPace struct {
	busy    bool
	looks   int    // since the last that began a new count
	counted uint64 // collections in them
}

// next takes the number of collections since the last look.
func (p *gcPace) next(collections uint64) {
	p.looks++
	p.counted += collections
	switch {
	case collections >= gcMany:
		*p = gcPace{busy: true}
	case p.looks == gcRest:
		*p = gcPace{busy: p.busy && p.counted >= gcMany}
	}
}

// percent is what the collector is set to when live bytes are in use on a machine
// with so much memory: a busy node's garbage takes an eighth of it more at most.
func (p *gcPace) percent(live, memory uint64) int {
	if !p.busy {
		return gcIdle
	}
	return min(gcBusy, gcIdle+int(memory/8*100/max(live, 1)))
}

// paceGC sets the collector until ctx ends, unless the environment does.
func paceGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		machine = unix.Sysinfo_t{} // then it is as small as can be
	}
	memory := uint64(machine.Totalram) * uint64(machine.Unit) //nolint:unconvert // not 64 bits on every machine
	debug.SetGCPercent(gcIdle)
	samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	var pace gcPace
	before := samples[0].Value.Uint64()
	set := gcIdle
	tick := time.NewTicker(gcLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(samples)
		cycles, live := samples[0].Value.Uint64(), samples[1].Value.Uint64()
		pace.next(cycles - before)
		before = cycles
		// While a node is busy its heap moves all the time: small steps are not worth it.
		if want := pace.percent(live, memory); want != set && (want == gcIdle || set == gcIdle || want < set-set/10 || want > set+set/10) {
			debug.SetGCPercent(want)
			if want == gcIdle {
				debug.FreeOSMemory() // what it was busy with would go back only bit by bit
			}
			set = want
		}
	}
}
