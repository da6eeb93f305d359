package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// part is one long-running component of the daemon.
type part struct {
	name string
	// run blocks until ctx ends or the part fails; it calls ready once, when
	// what comes after may use the part.
	run func(ctx context.Context, ready func()) error
	// stopWithin bounds the wait for run to return after its ctx ended; past
	// it the part is reported and left, for the process is about to exit.
	stopWithin time.Duration
}

// stack starts parts one after the other, each once those before it are
// ready, and stops them in the opposite order. The first part that fails is
// the stack's error.
type stack struct {
	log     *slog.Logger
	notify  func(name string, took time.Duration) // a part became ready
	failed  chan error                            // holds the first failure
	running []*runningPart
}

type runningPart struct {
	part
	cancel context.CancelFunc
	done   chan struct{}
}

func newStack(log *slog.Logger, notify func(string, time.Duration)) *stack {
	return &stack{log: log, notify: notify, failed: make(chan error, 1)}
}

// start runs parts at the same time and returns when all of them are ready,
// or with the first failure of any part of the stack, or when ctx ends.
func (s *stack) start(ctx context.Context, parts ...part) error {
	var wait []<-chan struct{}
	for _, p := range parts {
		wait = append(wait, s.launch(ctx, p))
	}
	for _, ready := range wait {
		select {
		case <-ready:
		case err := <-s.failed:
			s.fail(err)
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *stack) launch(ctx context.Context, p part) <-chan struct{} {
	// The part's life is the stack's, not the caller's: parts stop in order.
	partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &runningPart{part: p, cancel: cancel, done: make(chan struct{})}
	s.running = append(s.running, r)
	ready := make(chan struct{})
	began := time.Now()
	var once sync.Once
	go func() {
		defer close(r.done)
		err := p.run(partCtx, func() {
			once.Do(func() {
				s.notify(p.name, time.Since(began))
				close(ready)
			})
		})
		switch {
		case partCtx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		case partCtx.Err() != nil:
			s.log.Warn("part stopped with an error", "part", p.name, "err", err)
		case err == nil:
			s.fail(fmt.Errorf("%s: stopped by itself", p.name))
		default:
			s.fail(fmt.Errorf("%s: %w", p.name, err))
		}
	}()
	return ready
}

func (s *stack) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// wait blocks until ctx ends or a part fails, and returns that failure.
func (s *stack) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// stop ends the parts, last started first, each within its bound.
func (s *stack) stop() {
	for _, r := range slices.Backward(s.running) {
		r.cancel()
		timer := time.NewTimer(r.stopWithin)
		select {
		case <-r.done:
		case <-timer.C:
			s.log.Warn("part did not stop in time and is left behind", "part", r.name, "waited", r.stopWithin)
		}
		timer.Stop()
	}
	s.running = nil
}
