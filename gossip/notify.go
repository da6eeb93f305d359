package gossip

import "sync"

// signal wakes one reader, who re-reads what it cares for. It holds one wake.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) fire() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// subscribers wakes any number of readers.
type subscribers struct {
	mu  sync.Mutex
	all map[signal]struct{}
}

func (s *subscribers) add() (signal, func()) {
	c := newSignal()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[signal]struct{})
	}
	s.all[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, c)
	}
}

func (s *subscribers) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		c.fire()
	}
}

// turnstile is a lock that is held while waiting for the network. Unlike a
// mutex it is a channel, so that a test's clock can go on meanwhile.
type turnstile chan struct{}

func newTurnstile() turnstile { return make(turnstile, 1) }

func (t turnstile) lock()   { t <- struct{}{} }
func (t turnstile) unlock() { <-t }
