package sched

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrStoodStill ends a term whose process did nothing for longer than
// Config.MaxPause.
var ErrStoodStill = errors.New("this process stood still for too long to go on leading")

// beatsPerPause is how often the pulse beats within the longest pause.
const beatsPerPause = 10

// pulse tells whether this process has run all the time: it beats, and stops
// for ever once two beats were too far apart. It counts the time the machine
// was suspended, too.
type pulse struct {
	limit   time.Duration
	clock   func() (time.Duration, error)
	last    atomic.Int64 // time of the last beat, by clock
	stopped atomic.Bool
}

func newPulse(limit time.Duration) (*pulse, error) {
	p := &pulse{limit: limit, clock: sinceBoot}
	now, err := p.clock()
	if err != nil {
		return nil, err
	}
	p.last.Store(int64(now))
	return p, nil
}

// sinceBoot is a clock that only ever runs forward, also while suspended.
func sinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// run beats until ctx ends, nil then, or the pulse has stopped.
func (p *pulse) run(ctx context.Context) error {
	ticker := time.NewTicker(p.limit / beatsPerPause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !p.beats() {
			return ErrStoodStill
		}
		if now, err := p.clock(); err == nil {
			p.last.Store(int64(now))
		}
	}
}

// beats reports whether the pulse has not stopped; it may be called by any
// goroutine. False stays false: what wakes up together with the pulse cannot
// slip through behind its next beat.
func (p *pulse) beats() bool {
	now, err := p.clock()
	if err != nil || now-time.Duration(p.last.Load()) > p.limit {
		p.stopped.Store(true)
	}
	return !p.stopped.Load()
}
