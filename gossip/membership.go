package gossip

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

const (
	lookEvery     = 100 * time.Millisecond // at the members
	lookCost      = 500 * time.Microsecond // a member; so long there is no other look after one
	registerEvery = 500 * time.Millisecond // at most, at the register
)

// watchMembers keeps the members up to date, and a stream to each that is to be
// tailed.
func (a *Agent) watchMembers(ctx context.Context, r *running) error {
	w := membersLoop{
		agent: a, run: r, follows: make(map[string]*following), register: map[string]registration{}, evidence: map[string]evidence{},
		calls: make(map[string]*verification), verdicts: make(chan verdict),
	}
	a.stale.Store(true)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		now := time.Now()
		w.step(ctx, now, min(now.Sub(last), 2*lookEvery))
		last = now
		look := a.look
		if now.Before(w.rest) {
			look = nil // the tick will do
		}
		select {
		case <-ctx.Done():
			w.wg.Wait()
			return nil
		case <-look:
		case <-tick.C:
		case v := <-w.verdicts:
			w.judged(v, time.Now())
			w.recheck = true
		case done := <-a.refreshes:
			a.stale.Store(true)
			w.readAt, w.rest = time.Time{}, time.Time{}
			w.step(ctx, time.Now(), 0)
			close(done)
		}
	}
}

// refresh waits until the members have been read anew.
func (a *Agent) refresh(ctx context.Context) {
	done := make(chan struct{})
	select {
	case a.refreshes <- done:
		select {
		case <-done:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
}

// membersLoop is what the membership loop alone knows.
type membersLoop struct {
	agent    *Agent
	run      *running
	peers    map[string]peer
	rest     time.Time // when serf may be read again
	register map[string]registration
	read     int64     // the store's revision when the register was read
	readAt   time.Time // when that was
	evidence map[string]evidence
	until    time.Time // when an announced restart is over, the first of them
	calls    map[string]*verification
	verdicts chan verdict
	recheck  bool // a verdict is in
	follows  map[string]*following
	turn     turn
	wg       sync.WaitGroup
}

// following is the goroutine that tails one peer.
type following struct {
	link   *link
	cancel context.CancelFunc
}

// step looks once.
func (w *membersLoop) step(ctx context.Context, now time.Time, elapsed time.Duration) {
	a := w.agent
	dirty := false
	if !now.Before(w.rest) && a.stale.Swap(false) {
		dirty = true
		w.peers = a.readPeers(w.run.serf)
		w.rest = now.Add(time.Duration(len(w.peers)) * lookCost)
	}
	if w.readRegister(ctx, now) {
		dirty = true
	}
	if w.recheck {
		w.recheck, dirty = false, true
	}
	if w.gather(elapsed) || !w.until.IsZero() && !now.Before(w.until) {
		dirty = true
	}
	for _, c := range w.calls {
		dirty = dirty || c.due(now)
	}
	if dirty {
		doubted, gone := w.verify(ctx, now)
		w.compute(now, doubted, gone)
	}
	if dirty || w.turn.due(now) {
		w.follow(ctx, now)
	}
}

// readRegister reads the register again when the store has changed, and reports
// whether the register has.
func (w *membersLoop) readRegister(ctx context.Context, now time.Time) bool {
	rev := w.agent.cfg.Store.Revision()
	if rev == w.read || now.Sub(w.readAt) < registerEvery {
		return false
	}
	register, err := readRegister(ctx, w.agent.cfg.Store)
	if err != nil && ctx.Err() == nil {
		w.agent.log.Warn("register of members is not readable", "err", err)
	}
	if register == nil {
		return false
	}
	w.read, w.readAt = rev, now
	if maps.Equal(register, w.register) {
		return false
	}
	w.register = register
	return true
}

// gather takes in what the streams say, and reports whether it could change a
// member's state.
func (w *membersLoop) gather(elapsed time.Duration) bool {
	limits := w.agent.limits()
	fresh := make(map[string]evidence, len(w.follows))
	changed := false
	for name, f := range w.follows {
		e := f.link.look(elapsed)
		old := w.evidence[name]
		if e.known != old.known || e.broken != old.broken || limits.reached(e.silent) != limits.reached(old.silent) {
			changed = true
		}
		fresh[name] = e
	}
	for name, e := range w.evidence {
		if _, ok := fresh[name]; !ok && e.known {
			changed = true // what is no longer tailed has lost its alibi
		}
	}
	w.evidence = fresh
	return changed
}

// limits are the silences that count.
func (a *Agent) limits() thresholds {
	return thresholds{suspect: a.cfg.SuspectAfter, called: 7 * a.cfg.DeadAfter / 10, dead: a.cfg.DeadAfter}
}

// compute makes the members anew and tells who it may concern. The death of
// those doubted is not believed yet; to those gone their streams, which were
// heard a moment ago, are no alibi.
func (w *membersLoop) compute(now time.Time, doubted, gone []string) {
	a := w.agent
	heard := maps.Clone(w.evidence)
	for _, name := range doubted {
		heard[name] = evidence{known: true}
	}
	for _, name := range gone {
		delete(heard, name)
	}
	a.mu.Lock()
	v := view{now: now, self: a.self(now), peers: w.peers, register: w.register, evidence: heard, before: a.members, limits: a.limits()}
	members := v.members()
	changed := !maps.Equal(members, a.members)
	a.members = members
	a.liveOrigins = make(map[crdt.Origin]bool, len(members))
	for _, m := range members {
		if m.Live() && !m.Self {
			a.liveOrigins[m.Origin] = true
		}
	}
	a.failed = make(map[string]bool)
	for name, p := range w.peers {
		if p.standing == standingFailed {
			a.failed[name] = true
		}
	}
	a.sparse = len(a.liveOrigins)+1 > a.cfg.Mesh
	w.until = time.Time{}
	for _, m := range members {
		if !m.Until.IsZero() && (w.until.IsZero() || m.Until.Before(w.until)) {
			w.until = m.Until
		}
	}
	leader, _ := Elect(sorted(members))
	if leader.Name != a.leader {
		a.leader, a.since = leader.Name, now
		a.term++
		a.log.Info("leader changed", "leader", leader.Name, "term", a.term)
	}
	a.mu.Unlock()
	a.judgePeers(members)
	if changed {
		a.changed.fire()
		a.readers.fire()
	}
}

// judgePeers tells the waiting writers which peers are live.
func (a *Agent) judgePeers(members map[string]Member) {
	live := make(map[string]bool, len(members))
	for name, m := range members {
		live[name] = m.State == StateAlive || m.State == StateRestarting
	}
	a.acks.judge(live)
}

// follow starts and stops the streams to the members that are to be tailed.
func (w *membersLoop) follow(ctx context.Context, now time.Time) {
	a := w.agent
	live := make(map[string]bool, len(w.peers))
	limits := a.limits()
	for name, p := range w.peers {
		e := w.evidence[name]
		if p.standing == standingAlive || p.standing == standingFailed && e.known && (!e.broken || e.silent < limits.called) {
			live[name] = true
		}
	}
	want := w.turn.choose(now, a.cfg.Name, live, a.cfg.Mesh, a.cfg.Degree)
	for name, f := range w.follows {
		if !want[name] {
			f.cancel()
			f.link.want(false)
			delete(w.follows, name)
		}
	}
	for name := range want {
		if _, ok := w.follows[name]; ok {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		l := a.link(name)
		l.want(true)
		w.follows[name] = &following{link: l, cancel: cancel}
		w.wg.Go(func() {
			defer cancel()
			a.follow(ctx, w.run, l)
		})
	}
}

// addressOf returns where a member is reached.
func (a *Agent) addressOf(name string) (netip.AddrPort, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.members[name]
	return m.Addr, ok && m.Addr.IsValid()
}

// knownAddress reports whether a member is known to have an address.
func (a *Agent) knownAddress(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.members {
		if m.Addr.Addr() == addr {
			return true
		}
	}
	return false
}
