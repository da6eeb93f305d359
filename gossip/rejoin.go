package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	seekEvery   = 250 * time.Millisecond
	seekFirst   = 500 * time.Millisecond // wait after the first failure
	seekLast    = 5 * time.Second        // and after many
	seekSpread  = 10 * time.Millisecond  // for each member sought, so that not all call one at once
	readyWithin = 4 * time.Second        // a node that reaches nobody is ready alone
	seekAtOnce  = 4                      // members sought at once
)

// seeker is what is known of one address where a member may be.
type seeker struct {
	name  string // empty for a seed
	next  time.Time
	delay time.Duration
	busy  bool
}

// rejoin seeks the members that are known and not reached, for ever: that is
// how a node comes back, and how the two sides of a cut become one again.
func (a *Agent) rejoin(ctx context.Context, r *running) error {
	s := seeking{agent: a, run: r, at: make(map[netip.AddrPort]*seeker), done: make(chan netip.AddrPort)}
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	tick := time.NewTicker(seekEvery)
	defer tick.Stop()
	a.refresh(ctx) // the register says whom to seek
	s.began = time.Now()
	for {
		s.step(ctx, time.Now())
		if s.first(time.Now()) {
			a.refresh(ctx) // who was found is known before anyone asks who leads
			a.setReady()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case at := <-s.done:
			s.busy--
			if k, ok := s.at[at]; ok {
				k.busy = false
			}
		case at := <-r.gate.clash:
			if err := a.settleClash(ctx, r, at); err != nil {
				return err
			}
		}
		if err := s.refused(); err != nil {
			return err
		}
	}
}

// seeking is what the rejoin loop alone knows.
type seeking struct {
	agent *Agent
	run   *running
	at    map[netip.AddrPort]*seeker
	busy  int
	began time.Time
	ready bool
	done  chan netip.AddrPort
	wg    sync.WaitGroup
}

// first reports, once, that the first try to reach the cluster is over: a member
// was reached, or none of those known at first was, or it takes too long.
func (s *seeking) first(now time.Time) bool {
	if s.ready {
		return false
	}
	s.ready = s.run.joined.Load() || now.Sub(s.began) >= readyWithin
	if !s.ready {
		s.ready = true
		for _, k := range s.at {
			s.ready = s.ready && k.delay > 0 && !k.busy
		}
	}
	return s.ready
}

// step starts as many tries as are due and allowed.
func (s *seeking) step(ctx context.Context, now time.Time) {
	wanted := s.agent.sought()
	for at, name := range wanted {
		k, ok := s.at[at]
		if !ok {
			k = &seeker{next: now.Add(rand.N(1 + time.Duration(len(wanted))*seekSpread))}
			if !s.ready {
				k.next = now
			}
			s.at[at] = k
		}
		k.name = name
	}
	due := make([]netip.AddrPort, 0, len(s.at))
	for at, k := range s.at {
		if _, ok := wanted[at]; !ok {
			if !k.busy {
				delete(s.at, at)
			}
			continue
		}
		if !k.busy && !now.Before(k.next) {
			due = append(due, at)
		}
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, at := range due {
		if s.busy == seekAtOnce {
			return
		}
		s.try(ctx, at, now, len(s.at))
	}
}

func (s *seeking) try(ctx context.Context, at netip.AddrPort, now time.Time, known int) {
	k := s.at[at]
	k.delay = min(max(2*k.delay, seekFirst), seekLast*time.Duration(1+known/16))
	k.next = now.Add(k.delay/2 + rand.N(k.delay))
	k.busy = true
	s.busy++
	name := k.name
	s.wg.Go(func() {
		if err := s.agent.join(ctx, s.run, at, name); err != nil && ctx.Err() == nil {
			s.agent.log.Debug("member is not reached", "member", name, "addr", at, "err", err)
		}
		select {
		case s.done <- at:
		case <-ctx.Done():
		}
	})
}

// refused ends a first join that the cluster turned down.
func (s *seeking) refused() error {
	err := s.run.gate.refusal()
	if err == nil {
		return nil
	}
	if !s.run.joined.Load() {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	s.agent.log.Warn("a member is kept out", "err", err)
	return nil
}

// sought returns the addresses to try, with the names of the members there as
// far as they are known.
func (a *Agent) sought() map[netip.AddrPort]string {
	out := make(map[netip.AddrPort]string)
	for _, at := range a.cfg.Seeds() {
		out[netip.AddrPortFrom(at.Addr().Unmap(), at.Port())] = ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.members {
		if (m.State == StateAlive || m.State == StateSuspect) && !a.failed[m.Name] {
			delete(out, m.Addr)
		}
	}
	for _, m := range a.members {
		// One that lives and that serf holds dead has to hear of it.
		if m.Addr.IsValid() && (m.State == StateDead || m.State == StateRestarting || m.State == StateSuspect && a.failed[m.Name]) {
			out[m.Addr] = m.Name
		}
	}
	delete(out, a.advertise())
	return out
}

// join tries to become one cluster with the member at an address.
func (a *Agent) join(ctx context.Context, r *running, at netip.AddrPort, name string) error {
	// Cheaper than to let serf find out, which tries one address at a time.
	w, err := a.askAt(ctx, r, at, name)
	if err != nil {
		return err
	}
	if w.Name == a.cfg.Name {
		if w.Self.birth != a.birth() {
			r.gate.suspect(at)
		}
		return nil
	}
	// Serf takes one at a time anyway; to wait here can be given up.
	select {
	case r.joining <- struct{}{}:
		defer func() { <-r.joining }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := r.serf.Join([]string{w.Name + "/" + at.String()}, true); err != nil {
		return err
	}
	r.joined.Store(true)
	return nil
}

// settleClash finds out whether another daemon with this node's name lives at
// an address. The older of the two stays.
func (a *Agent) settleClash(ctx context.Context, r *running, at netip.AddrPort) error {
	before, origin := a.birth(), a.cfg.Store.Origin() // either may change meanwhile
	w, err := a.askAt(ctx, r, at, a.cfg.Name)
	if err != nil {
		a.log.Debug("nobody else has this node's name", "addr", at, "err", err)
		return nil
	}
	own := a.birth()
	switch {
	case w.Self.birth >= before && w.Self.birth <= own && (w.Origin == origin || w.Origin == a.cfg.Store.Origin()):
		return nil // it is this node, by another address
	case w.Self.birth > own:
		a.log.Warn("a younger member has this node's name and is to give way", "addr", at)
		return nil
	}
	return fmt.Errorf("%w: an older member at %s is named %q", ErrRefused, at, a.cfg.Name)
}
