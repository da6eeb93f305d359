package gossip

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// setCard changes what this node tells of itself, and waits until it has been
// told to some.
func (a *Agent) setCard(change func(*card)) error {
	a.announce.Lock()
	defer a.announce.Unlock()
	a.mu.Lock()
	change(&a.card)
	tags, r := a.card.tags(), a.running
	a.mu.Unlock()
	a.stale.Store(true)
	a.look.fire()
	if r == nil {
		return errNotRunning
	}
	if err := r.serf.SetTags(tags); err != nil {
		return fmt.Errorf("announce change of tags: %w", err)
	}
	return nil
}

// Restarting announces that this node will be gone for at most window, and
// gives up leadership. Nothing is to be moved from it meanwhile. Zero takes the
// announcement back.
func (a *Agent) Restarting(window time.Duration) error {
	return a.setCard(func(c *card) {
		c.restart = time.Time{}
		if window > 0 {
			c.restart = a.cfg.Now().Add(window)
		}
	})
}

// Leave hands over and says goodbye: it gives up leadership, waits until a peer
// has everything this replica has, takes this node off the register, and
// leaves. Run goes on until its context ends. A node that nobody takes over from
// stays.
func (a *Agent) Leave(ctx context.Context) error {
	r := a.current()
	if r == nil {
		return errNotRunning
	}
	if err := a.setCard(func(c *card) { c.leaving = true }); err != nil {
		a.log.Warn("leaving is not announced", "err", err)
	}
	if err := a.handOver(ctx); err != nil {
		if err := a.setCard(func(c *card) { c.leaving = false }); err != nil {
			a.log.Warn("staying is not announced", "err", err)
		}
		return fmt.Errorf("leave: %w", err)
	}
	if err := a.cfg.Store.Delete(ctx, membersPrefix+a.cfg.Name); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if err := a.handOver(ctx); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if err := r.serf.Leave(); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// handOver waits until some live peer has all that this replica has. It fails
// when there are members, and none of them is live.
func (a *Agent) handOver(ctx context.Context) error {
	goal := a.cfg.Store.Vector()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		alone, behind := a.has(goal)
		if alone || behind == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("hand over: %s lacks changes that only this node may have: %w", behind, ctx.Err())
		case <-tick.C:
		}
	}
}

// has reports whether a live peer includes goal: then behind is empty. Else it
// is one that does not. A node without members is alone.
func (a *Agent) has(goal crdt.Vector) (alone bool, behind string) {
	alone = true
	for _, m := range a.Members() {
		if m.Self || m.State == StateLeft {
			continue
		}
		alone = false
		if m.State == StateAlive && a.link(m.Name).knows().Includes(goal) {
			return false, ""
		}
		if behind == "" || m.State == StateAlive {
			behind = m.Name
		}
	}
	return alone, behind
}

// ErrLive: the member to be removed is not dead.
var ErrLive = errors.New("member is alive")

// Remove takes a dead member off the list for good. It fails with [ErrLive] for
// one that is not dead.
func (a *Agent) Remove(ctx context.Context, name string) error {
	r := a.current()
	if r == nil {
		return errNotRunning
	}
	a.mu.Lock()
	m, ok := a.members[name]
	a.mu.Unlock()
	switch {
	case !ok:
		return fmt.Errorf("remove %s: no such member", name)
	case m.Self || m.Live():
		return fmt.Errorf("remove %s: %w; let it leave, or stop it first", name, ErrLive)
	}
	if err := a.cfg.Store.Delete(ctx, membersPrefix+name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := r.serf.RemoveFailedNode(name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	a.stale.Store(true)
	a.look.fire()
	return nil
}

// SetKeys replaces the gossip keys: the first encrypts, all decrypt. To rotate
// without a gap, every member first gets the new key beside the old one, then
// as the first, and then alone.
func (a *Agent) SetKeys(keys [][]byte) error {
	if err := validKeys(keys); err != nil {
		return err
	}
	r := a.current()
	if r == nil {
		return errNotRunning
	}
	return setKeys(r.keyring, keys)
}
