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

// keepStable tells the store what is stable, and the members which incarnation it is.
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
		a.announceOrigin(ctx)
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
	members, ok := a.everyMember(ctx)
	if !ok {
		return nil
	}
	asked := 0
	for _, m := range members {
		l := a.link(m.Name)
		has := l.knows()
		if leads && m.Live() && asked < askAtOnce && !l.streams() {
			asked++
			if w, err := a.ask(ctx, m); err == nil {
				has = w.Vector
			}
		}
		if len(has) == 0 {
			return nil
		}
		lowest(out, has)
	}
	return out
}

// everyMember returns the other members that have not left, also those that are
// in the register only, as it is now: one that is new here, or is being filled, has
// heard of no member that is down. It reports false while the register is without
// this node, for then others may be missing too.
func (a *Agent) everyMember(ctx context.Context) ([]Member, bool) {
	register, err := readRegister(ctx, a.cfg.Store)
	if _, ok := register[a.cfg.Name]; err != nil || !ok {
		return nil, false
	}
	delete(register, a.cfg.Name)
	var all []Member
	for _, m := range a.Members() {
		_, registered := register[m.Name]
		delete(register, m.Name)
		if !m.Self && (registered || m.State != StateLeft) {
			all = append(all, m)
		}
	}
	for name := range register {
		all = append(all, Member{Name: name, State: StateDead})
	}
	return all, true
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
