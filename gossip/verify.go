package gossip

import (
	"context"
	"math/rand/v2"
	"time"
)

// A member that serf declares dead is called before the declaration is
// believed: datagrams may be lost where a connection is not, and a member that
// was itself off the network for a moment may accuse others. One that this node
// tails is called as soon as its stream is silent or broken, so that the answer
// is there by the time serf has made up its mind: a call that fails then makes
// the death known at once. In large clusters the calls are spread over a time in
// which a member that lives contradicts most of its accusers by itself.
const (
	verifyWithin = 500 * time.Millisecond
	verifySoon   = 250 * time.Millisecond // after a call to a member that serf has not declared dead
	verifyAgain  = 3 * time.Second        // while serf insists and the member answers
	verifyMost   = 200                    // members that may all call one at once
	verifySpread = time.Millisecond       // for each member, when there are more
)

// verification is the calls to one member.
type verification struct {
	busy     bool
	called   bool // there was an answer, or none, to a call
	answered bool
	next     time.Time // when there is a call, not before
}

// due reports whether the member is to be called.
func (c *verification) due(now time.Time) bool {
	return !c.busy && !now.Before(c.next)
}

// verdict is how a call went.
type verdict struct {
	name     string
	of       *verification
	answered bool
}

// suspicious reports whether the member is worth a call: serf holds it dead, or
// its stream says that it may be.
func (w *membersLoop) suspicious(name string, now time.Time) bool {
	p, ok := w.peers[name]
	if !ok || p.card.leaving || now.Before(p.card.restart) || p.standing != standingAlive && p.standing != standingFailed {
		return false
	}
	e := w.evidence[name]
	if !e.known {
		return p.standing == standingFailed
	}
	return e.broken || e.silent >= w.agent.limits().suspect
}

// verify calls members that may be dead. It returns those that serf declared
// dead and that may live, and those of which a call has shown that serf is
// right.
func (w *membersLoop) verify(ctx context.Context, now time.Time) (doubted, gone []string) {
	for name := range w.calls {
		if !w.suspicious(name, now) {
			delete(w.calls, name)
		}
	}
	limits := w.agent.limits()
	w.agent.mu.Lock()
	held := w.agent.members
	w.agent.mu.Unlock()
	for name, p := range w.peers {
		if !w.suspicious(name, now) {
			continue
		}
		if p.standing == standingFailed && held[name].State == StateDead {
			delete(w.calls, name)
			gone = append(gone, name)
			continue
		}
		c, ok := w.calls[name]
		if !ok {
			c = &verification{next: now}
			if len(w.peers) > verifyMost && !w.evidence[name].known {
				c.next = now.Add(rand.N(time.Duration(len(w.peers)) * verifySpread))
			}
			w.calls[name] = c
		}
		if c.due(now) {
			c.busy = true
			w.call(ctx, p, c)
		}
		switch {
		case p.standing != standingFailed:
		case c.called && !c.answered && (!w.evidence[name].known || w.evidence[name].silent >= limits.called):
			gone = append(gone, name)
		case !c.called || c.answered:
			doubted = append(doubted, name)
		}
	}
	return doubted, gone
}

func (w *membersLoop) call(ctx context.Context, p peer, c *verification) {
	w.wg.Go(func() {
		callCtx, cancel := context.WithTimeout(ctx, verifyWithin)
		defer cancel()
		_, err := w.agent.askAt(callCtx, w.run, p.addr, p.name)
		select {
		case w.verdicts <- verdict{name: p.name, of: c, answered: err == nil}:
		case <-ctx.Done():
		}
	})
}

// judged notes how a call went.
func (w *membersLoop) judged(v verdict, now time.Time) {
	c := w.calls[v.name]
	if c == nil || c != v.of {
		return // it is no longer asked
	}
	c.busy, c.called, c.answered = false, true, v.answered
	c.next = now.Add(verifySoon)
	if v.answered && w.peers[v.name].standing == standingFailed {
		c.next = now.Add(verifyAgain)
	}
}
