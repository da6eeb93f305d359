package gossip

import (
	"context"
	"sync"
	"time"
)

// shareFor is for how long a call that hangs keeps the next from beginning.
const shareFor = 50 * time.Millisecond

// shared gathers callers that all want what one call gives them. It has to
// begin after they came: what was under way by then may have asked too early.
type shared struct {
	asked signal

	mu   sync.Mutex
	next *sharedCall // has not begun; nil when nobody waits for one
}

// sharedCall is done once err is what came of it.
type sharedCall struct {
	done chan struct{}
	err  error
}

// join returns the call that begins next.
func (s *shared) join() *sharedCall {
	s.mu.Lock()
	if s.next == nil {
		s.next = &sharedCall{done: make(chan struct{})}
	}
	c := s.next
	s.mu.Unlock()
	s.asked.fire()
	return c
}

func (s *shared) take() *sharedCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.next
	s.next = nil
	return c
}

// run makes the calls until ctx ends, one after the other, but for those that
// take long.
func (s *shared) run(ctx context.Context, call func(context.Context) error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-s.asked:
		case <-ctx.Done():
			return
		}
		c := s.take()
		if c == nil {
			continue
		}
		wg.Go(func() {
			defer close(c.done)
			c.err = call(ctx)
		})
		long := time.NewTimer(shareFor)
		select {
		case <-c.done:
		case <-long.C:
		case <-ctx.Done():
		}
		long.Stop()
	}
}

// CatchUpShared is [Agent.CatchUp] for many callers at once, such as reads:
// those who wait share one call that began after they came.
func (a *Agent) CatchUpShared(ctx context.Context) error {
	r := a.current()
	if r == nil {
		return errNotRunning
	}
	c := a.catching.join()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return errNotRunning
	}
}
