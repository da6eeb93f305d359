package store

import "sync"

// holds are the callers whose writes are durable and visible but not answered
// yet, since peers should have them first.
type holds struct {
	mu     sync.Mutex
	held   map[*held]struct{}
	closed bool
}

// held is the callers of one batch.
type held struct {
	holds *holds
	reqs  []*request
}

// settle answers the callers of a batch that is visible, but leaves those whose
// changes peers should have to Config.Hold.
func (s *Store) settle(b *batch) {
	if s.cfg.Hold == nil {
		b.answer(nil)
		return
	}
	h := &held{holds: &s.holds}
	for _, r := range b.reqs {
		if r.hold && r.err == nil {
			h.reqs = append(h.reqs, r)
		} else {
			close(r.done)
		}
	}
	if len(h.reqs) > 0 && s.holds.add(h) {
		s.cfg.Hold(b.view.rev, h.release)
	}
}

func (hs *holds) add(h *held) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		h.answer()
		return false
	}
	if hs.held == nil {
		hs.held = make(map[*held]struct{})
	}
	hs.held[h] = struct{}{}
	return true
}

// release answers the callers, once.
func (h *held) release() {
	h.holds.mu.Lock()
	defer h.holds.mu.Unlock()
	if _, ok := h.holds.held[h]; ok {
		delete(h.holds.held, h)
		h.answer()
	}
}

func (h *held) answer() {
	for _, r := range h.reqs {
		close(r.done)
	}
}

// releaseAll answers everyone, also those to come.
func (hs *holds) releaseAll() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.closed = true
	for h := range hs.held {
		h.answer()
	}
	hs.held = nil
}
