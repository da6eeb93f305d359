package node

import (
	"context"
	"errors"
	"time"

	"github.com/mootkube/moot/node/join"
)

// registerLook is how often the register is looked at when no member changes:
// what the other side of a cut wrote there comes after its members do.
// registerSure is how long a node is out of it before it believes so.
const (
	registerLook = 30 * time.Second
	registerSure = 3 * time.Second
)

// register keeps this node's entry in the register of members. When the other
// side of a cut gave its number to an older member, this node takes another,
// and what it issued by the old one is another node's from then on.
func (n *Node) register(ctx context.Context, r *replica, m *membership) error {
	machine, err := join.Machine(n.cfg.DataDir)
	if err != nil {
		return err
	}
	n.memberMu.Lock()
	number := m.Number
	n.memberMu.Unlock()
	settled, err := r.registry.Settle(ctx, join.Self{
		Name: m.Name, Machine: machine, Number: number,
		Address: n.cfg.peerAddr(), API: n.cfg.APIPort, Version: Version,
	}, n.enters)
	if err != nil || settled.Number == number {
		return err
	}
	n.log.Warn("another member has this node's number, it takes a new one", "old", number, "new", settled.Number)
	if err := n.amend(m, func() { m.Number = settled.Number }); err != nil {
		return err
	}
	if err := r.db.SetNode(ctx, settled.Number); err != nil {
		return err
	}
	return r.agent.SetNumber(settled.Number)
}

// amend changes what is kept of the membership.
func (n *Node) amend(m *membership, change func()) error {
	n.memberMu.Lock()
	defer n.memberMu.Unlock()
	change()
	return n.cfg.saveMembership(m)
}

// registerPart looks after the entry while the daemon runs. It ends the daemon
// when this node was removed or the other side of a cut gave its name away.
func (n *Node) registerPart(r *replica, m *membership) part {
	return part{name: "register", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		ready()
		changed, cancel := r.agent.Subscribe()
		defer cancel()
		tick := time.NewTicker(registerLook)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-tick.C:
			}
			err := n.register(ctx, r, m)
			if isOut(err) && pause(ctx, registerSure) { // not while the change is still on its way
				err = n.register(ctx, r, m)
			}
			switch {
			case ctx.Err() != nil || n.leaving.Load():
				<-ctx.Done()
				return nil
			case isOut(err):
				n.leaving.Store(true)
				return err
			case err != nil:
				n.log.Warn("the register of members could not be brought up to date, trying again", "err", err)
			default:
				n.enters = false // missing from now on means removed
			}
		}
	}}
}

// isOut reports whether this node is no member any more.
func isOut(err error) bool {
	return errors.Is(err, join.ErrRemoved) || errors.Is(err, join.ErrNameTaken)
}
