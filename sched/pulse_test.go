package sched

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		away := time.Duration(0) // how long the machine was suspended
		p := &pulse{limit: 5 * time.Second, clock: func() (time.Duration, error) { return time.Since(start) + away, nil }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.run(ctx) }()
		<-time.After(time.Hour)
		away = 4 * time.Second
		<-time.After(time.Hour)
		synctest.Wait()
		if !p.beats() {
			t.Fatal("stopped without a long pause")
		}
		away += 6 * time.Second
		if p.beats() {
			t.Error("beats after a long pause")
		}
		if err := <-done; !errors.Is(err, ErrStoodStill) {
			t.Errorf("ended with %v", err)
		}
		away = 0
		if p.beats() {
			t.Error("beats again")
		}
		cancel()
	})
}

func TestPulseEnds(t *testing.T) {
	p, err := newPulse(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.run(ctx); err != nil || !p.beats() {
		t.Errorf("ended with %v, beats: %t", err, p.beats())
	}
}
