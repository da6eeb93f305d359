package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// askAtOnce bounds the members asked at once what they have.
const askAtOnce = 16

// errNotRunning: the agent does not run.
var errNotRunning = errors.New("gossip agent is not running")

// ask returns what a member has, and notes it.
func (a *Agent) ask(ctx context.Context, m Member) (welcome, error) {
	r := a.current()
	if r == nil {
		return welcome{}, errNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.CatchUpWait)
	defer cancel()
	w, err := a.askAt(ctx, r, m.Addr, m.Name)
	if err != nil {
		return welcome{}, fmt.Errorf("ask %s: %w", m.Name, err)
	}
	a.link(m.Name).learn(w.Vector)
	a.stability.learn(w.Stable)
	return w, nil
}

// askAt asks the member at an address who it is and what it has.
func (a *Agent) askAt(ctx context.Context, r *running, at netip.AddrPort, name string) (welcome, error) {
	conn, _, w, err := a.open(ctx, r, at, name, modeAsk, func() {})
	if err != nil {
		return welcome{}, err
	}
	_ = conn.Close()
	return w, nil
}

// CatchUp waits until this replica has what every reachable member had when it
// was asked. It gives each member Config.CatchUpWait to answer and as long
// again for what it has to arrive, and returns an error that names those that
// failed; what the others had is here regardless. When it has all that any member
// has of this replica's own changes, it says so to the store.
func (a *Agent) CatchUp(ctx context.Context) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		errs  []error
		whole = make(map[string]bool) // what they have of this replica's own
		slots = make(chan struct{}, askAtOnce)
	)
	for _, m := range a.Members() {
		if m.Self || m.State != StateAlive && m.State != StateSuspect {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			all, err := a.catchUpWith(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			whole[m.Name] = all
			errs = append(errs, err)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	members, known := a.everyMember(ctx)
	if !known || slices.ContainsFunc(members, func(m Member) bool { return !whole[m.Name] }) {
		return nil
	}
	return a.cfg.Store.Trust(ctx)
}

// catchUpWith waits until this replica has what a member had when it was asked. It
// reports whether that is all of this replica's own changes that the member has.
func (a *Agent) catchUpWith(ctx context.Context, m Member) (all bool, err error) {
	w, err := a.ask(ctx, m)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.CatchUpWait)
	defer cancel()
	if err := a.await(ctx, w.Vector); err != nil {
		return false, fmt.Errorf("catch up with %s: %d changes are missing: %w", m.Name, distance(a.cfg.Store.Vector(), w.Vector), err)
	}
	own := a.cfg.Store.Origin()
	return w.Beyond[own] <= a.cfg.Store.Vector()[own], nil
}

// await waits until this replica includes goal.
func (a *Agent) await(ctx context.Context, goal crdt.Vector) error {
	advanced, cancel := a.advanced.add()
	defer cancel()
	for !a.cfg.Store.Vector().Includes(goal) {
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Bootstrap waits until the replica has all that one live peer had. It is for a
// new replica, or one that Run gave up with [ErrForgotten], before anything is
// served from it: when the cluster has left it behind, it is wiped first, and
// filled by a peer that includes what was wiped, unless none is left. A node
// that knows of no other member returns at once.
func (a *Agent) Bootstrap(ctx context.Context) error {
	a.phase.CompareAndSwap(phaseEntering, phaseBootstrap)
	changed, cancel := a.Subscribe()
	defer cancel()
	select {
	case <-a.ready:
	case <-ctx.Done():
		return fmt.Errorf("bootstrap replica: %w", ctx.Err())
	}
	hoped := time.Now()
	for {
		life, owed := a.replica.now(), a.cfg.Store.Owed()
		alone, answered := len(a.sought()) == 0, false
		for _, m := range a.Members() {
			if m.Self || m.State == StateLeft {
				continue
			}
			alone = false
			if m.State != StateAlive {
				continue
			}
			w, err := a.ask(ctx, m)
			if err != nil {
				a.log.Debug("peer does not say what it has", "peer", m.Name, "err", err)
				continue
			}
			answered = true
			goal := w.Vector
			if !goal.Includes(owed) {
				continue
			}
			a.log.Info("getting the store from the cluster", "peer", m.Name, "missing", distance(a.cfg.Store.Vector(), goal))
			err = a.awaitFrom(ctx, goal, m.Name, life)
			if err == nil {
				return nil
			}
			a.log.Debug("peer does not bring the store", "peer", m.Name, "err", err)
			hoped = time.Now()
		}
		switch {
		case a.replica.now() != life:
			hoped = time.Now()
			continue
		case alone && owed == nil:
			return nil
		case !answered && !alone:
			hoped = time.Now()
		case owed != nil && (alone || time.Since(hoped) > a.cfg.FillWait):
			a.log.Warn("no member has what was wiped here, going on with what the others have and what only this replica had")
			if err := a.cfg.Store.GiveUpOwed(ctx); err != nil {
				return fmt.Errorf("bootstrap replica: %w", err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bootstrap replica: %w", ctx.Err())
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// awaitFrom waits until this replica includes goal, or is wiped, or the member
// that goal came from is no longer there or sends nothing; others may bring it all
// the same.
func (a *Agent) awaitFrom(ctx context.Context, goal crdt.Vector, name string, life int) error {
	advanced, cancel := a.advanced.add()
	defer cancel()
	changed, done := a.Subscribe()
	defer done()
	peer := a.link(name)
	got := peer.applied()
	silence := time.NewTicker(bulkSilence)
	defer silence.Stop()
	for {
		included := a.cfg.Store.Vector().Includes(goal)
		a.mu.Lock()
		live := a.members[name].Live()
		a.mu.Unlock()
		switch {
		case a.replica.now() != life:
			return errWiped
		case included:
			return nil
		case !live:
			return errors.New("the peer is gone")
		}
		select {
		case <-advanced:
		case <-changed:
		case <-silence.C:
			now := peer.applied()
			if now == got {
				return errors.New("the peer sends nothing")
			}
			got = now
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// side is what a cut left together. After a long one both sides may have
// forgotten what the other lacks: then one has to give way.
type side struct {
	Members uint64 // that tail each other, zero for a node that does not serve yet
	First   string // the first of their names
}

// givesWay reports whether s is to be wiped and other is not: the smaller side,
// and of equals the one whose first name comes later.
func (s side) givesWay(other side) bool {
	if s.Members != other.Members {
		return s.Members < other.Members
	}
	return s.First > other.First
}

// side returns this node's: itself and those that let it tail them. One that is about
// to refuse it is not of its side: two that refuse each other would both give way.
func (a *Agent) side() side {
	s := side{First: a.cfg.Name}
	if a.phase.Load() != phaseServing {
		return s
	}
	s.Members = 1
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, l := range a.links {
		l.mu.Lock()
		accepted := l.accepted
		l.mu.Unlock()
		if accepted {
			s.Members++
			s.First = min(s.First, name)
		}
	}
	return s
}

// leftBehind deals with a peer that has forgotten deletes which this replica
// never saw. It reports whether the replica was wiped, to be filled by the peer.
func (a *Agent) leftBehind(ctx context.Context, r *running, l *link, theirs side) (wiped bool) {
	if own := a.side(); !own.givesWay(theirs) {
		a.log.Debug("a peer was away for too long and is to be wiped", "peer", l.name)
		return false
	}
	switch a.phase.Load() {
	case phaseEntering:
		return false // it is tried again
	case phaseServing:
		a.log.Error("this replica was away for too long: it must be wiped and bootstrapped", "peer", l.name)
		a.stop(fmt.Errorf("%w: says %s", ErrForgotten, l.name))
		return false
	}
	to, ok := a.addressOf(l.name)
	if !ok {
		return false
	}
	w, err := a.askAt(ctx, r, to, l.name)
	if err != nil {
		return false
	}
	switch err := a.replica.wipe(ctx, a.cfg.Store, w.Vector); {
	case errors.Is(err, errServed):
		return false // it is tried again
	case err != nil:
		a.log.Error("replica is not wiped", "err", err)
		return false
	}
	a.log.Warn("this replica was away for too long and has been wiped", "peer", l.name)
	a.advanced.fire()
	a.announceOrigin(ctx)
	return true
}

// announceOrigin tells the members of a new incarnation of the store.
func (a *Agent) announceOrigin(ctx context.Context) {
	origin := a.cfg.Store.Origin()
	a.mu.Lock()
	known := a.card.origin == origin
	a.mu.Unlock()
	if known {
		return
	}
	if err := a.setCard(func(c *card) { c.origin = origin }); err != nil && ctx.Err() == nil {
		a.log.Warn("new incarnation is not announced", "err", err)
	}
}

// life keeps a replica's streams from claiming what was wiped: each belongs to
// the life of the replica in which it began.
type life struct {
	mu     sync.RWMutex
	n      int
	served bool // it must not be wiped any more
}

var (
	errWiped  = errors.New("the replica was wiped meanwhile")
	errServed = errors.New("the replica is being served from")
)

func (l *life) now() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.n
}

func (l *life) apply(ctx context.Context, n int, r Replica, records []*crdt.Record, upTo crdt.Vector) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.n != n {
		return errWiped
	}
	return r.Apply(ctx, records, upTo)
}

func (l *life) wipe(ctx context.Context, r Replica, covered crdt.Vector) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.served {
		return errServed
	}
	if err := r.Wipe(ctx, covered); err != nil {
		return err
	}
	l.n++
	return nil
}

// serve keeps the replica from being wiped, unless it was and is not filled yet.
func (l *life) serve(r Replica) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.served = r.Owed() == nil
	return l.served
}
