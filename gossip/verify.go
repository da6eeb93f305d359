package gossip

import (
	"context"
	"time"
)

// A member that serf declares dead, and that this node does not tail, is called
// once before the declaration is believed: datagrams may be lost where a
// connection is not, and a member that was itself off the network for a moment
// may accuse others. In very large clusters that would be too many calls.
const (
	verifyWithin = 500 * time.Millisecond
	verifyAgain  = 3 * time.Second // while serf insists and the member answers
	verifyMost   = 200             // members
)

// verification is the call to one member.
type verification struct {
	busy     bool
	answered bool
	next     time.Time
}

// verdict is how a call went.
type verdict struct {
	name     string
	answered bool
}

// verify calls members whose death serf has just declared, and returns those
// of which it is doubted.
func (w *membersLoop) verify(ctx context.Context, now time.Time) (doubted []string) {
	for name := range w.calls {
		if w.peers[name].standing != standingFailed {
			delete(w.calls, name)
		}
	}
	if len(w.peers) > verifyMost {
		return nil
	}
	w.agent.mu.Lock()
	held := w.agent.members
	w.agent.mu.Unlock()
	for name, p := range w.peers {
		if p.standing != standingFailed || p.card.leaving || w.evidence[name].known || held[name].State == StateDead {
			continue
		}
		c, ok := w.calls[name]
		if !ok {
			c = &verification{}
			w.calls[name] = c
		}
		if !c.busy && (!ok || c.answered && !now.Before(c.next)) {
			c.busy = true
			w.call(ctx, p)
		}
		if c.busy || c.answered {
			doubted = append(doubted, name)
		}
	}
	return doubted
}

func (w *membersLoop) call(ctx context.Context, p peer) {
	w.wg.Go(func() {
		callCtx, cancel := context.WithTimeout(ctx, verifyWithin)
		defer cancel()
		_, err := w.agent.askAt(callCtx, w.run, p.addr, p.name)
		select {
		case w.verdicts <- verdict{name: p.name, answered: err == nil}:
		case <-ctx.Done():
		}
	})
}

// judged notes how a call went.
func (w *membersLoop) judged(v verdict, now time.Time) {
	if c, ok := w.calls[v.name]; ok {
		c.busy, c.answered, c.next = false, v.answered, now.Add(verifyAgain)
	}
}
