package gossip

import (
	"context"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

const stableEvery = time.Second

// stability holds which changes every member has. That only grows, and once
// true is true for all: members tell each other.
type stability struct {
	mu     sync.Mutex
	vector crdt.Vector // never changed in place
}

func (s *stability) get() crdt.Vector {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vector
}

// learn joins in what is stable.
func (s *stability) learn(v crdt.Vector) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(v) == 0 || s.vector.Includes(v) {
		return
	}
	next := s.vector.Clone()
	next.Join(v)
	s.vector = next
}

// keepStable tells the store what is stable.
func (a *Agent) keepStable(ctx context.Context) error {
	tick := time.NewTicker(stableEvery)
	defer tick.Stop()
	var told crdt.Vector
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.stability.learn(a.floor(ctx))
		if stable := a.stability.get(); !told.Includes(stable) {
			a.cfg.Store.SetStable(stable)
			told = stable
		}
	}
}

// floor returns what all known members have, nil when that is not known of all.
// In a large cluster only the leader finds out, asking those it does not tail,
// a few at a time.
func (a *Agent) floor(ctx context.Context) crdt.Vector {
	a.mu.Lock()
	leads, sparse := a.leader == a.cfg.Name, a.sparse
	a.mu.Unlock()
	if sparse && !leads {
		return nil
	}
	out := a.cfg.Store.Vector().Clone()
	asked := 0
	for _, m := range a.Members() {
		if m.Self || m.State == StateLeft {
			continue
		}
		l := a.link(m.Name)
		has := l.knows()
		if leads && m.Live() && asked < askAtOnce && !l.streams() {
			asked++
			if v, err := a.ask(ctx, m); err == nil {
				has = v
			}
		}
		if len(has) == 0 {
			return nil
		}
		lowest(out, has)
	}
	return out
}

// lowest takes out of v what w does not include.
func lowest(v, w crdt.Vector) {
	for o, seq := range v {
		switch held := w[o]; {
		case held == 0:
			delete(v, o)
		case held < seq:
			v[o] = held
		}
	}
}
