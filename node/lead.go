package node

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/sched"
)

// termRetry is the pause after a term that ended by a failure of its own.
const termRetry = time.Second

// leadPart runs one term of leadership after the other, whenever the membership
// says that this node leads, and for no longer.
func (n *Node) leadPart(keys *pki.Bundle, exits *sched.Exits, agent *gossip.Agent) (part, error) {
	cfg := n.termConfig(keys, exits, agent)
	if err := cfg.CheckArgs(); err != nil {
		return part{}, err
	}
	return part{name: "controllers", stopWithin: slowStop, run: func(ctx context.Context, ready func()) error {
		ready() // most members never lead
		changed, cancel := agent.Subscribe()
		defer cancel()
		for {
			if !awaitLeading(ctx, agent, changed) {
				return nil
			}
			cfg.Term++
			if err := n.lead(ctx, agent, cfg); err != nil {
				n.log.Error("a term ended by itself, trying again", "term", cfg.Term, "err", err)
				if !pause(ctx, termRetry) {
					return nil
				}
			}
		}
	}}, nil
}

// lead is one term: it returns when this node does not lead any more, when ctx
// ends, or with the term's own failure.
func (n *Node) lead(ctx context.Context, agent *gossip.Agent, cfg sched.Config) error {
	term, end := context.WithCancel(ctx)
	defer end()
	changed, cancel := agent.Subscribe()
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer end()
		for leads(agent) {
			select {
			case <-changed:
			case <-term.Done():
				return
			}
		}
	}()
	defer func() { end(); <-watched }()
	// Who acts on what the others have overtaken would undo it.
	if err := agent.CatchUp(term); err != nil && term.Err() == nil {
		n.log.Warn("leading without all that the members have", "err", err)
	}
	if term.Err() != nil {
		return nil
	}
	changes, stop := agent.Subscribe()
	defer stop()
	cfg.Changed = changes
	defer n.board.update(func(s *Status) { s.Leading = nil })
	err := sched.Run(term, cfg)
	if errors.Is(err, sched.ErrLeftBehind) {
		n.log.Error("what a term left behind cannot write any more, but holds memory", "term", cfg.Term, "err", err)
		return nil
	}
	if term.Err() != nil {
		return nil
	}
	return err
}

func leads(agent *gossip.Agent) bool {
	leader, ok := agent.Leader()
	return ok && leader.Self
}

// awaitLeading blocks until this node leads; it returns false when ctx ended.
func awaitLeading(ctx context.Context, agent *gossip.Agent, changed <-chan struct{}) bool {
	for !leads(agent) {
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

func (n *Node) termConfig(keys *pki.Bundle, exits *sched.Exits, agent *gossip.Agent) sched.Config {
	cfg := sched.DefaultConfig()
	cfg.Log, cfg.StateDir, cfg.Exits = n.log, n.cfg.StateDir, exits
	cfg.API = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.cfg.apiAddr().Port())
	cfg.Controllers, cfg.Scheduler, cfg.Leader = keys.ControllerManager, keys.Scheduler, keys.Leader
	cfg.CACert, cfg.CAKey, cfg.ServiceAccountKey = keys.CA.Cert, keys.CA.Key, keys.ServiceAccountKey
	cfg.ClusterCIDRs, cfg.ServiceCIDRs = n.cfg.ClusterCIDR.All(), n.cfg.ServiceCIDR.All()
	cfg.ControllerArgs, cfg.SchedulerArgs = n.cfg.ControllerArgs, n.cfg.SchedulerArgs
	cfg.Node = n.cfg.NodeName
	cfg.APIServers = func() []netip.AddrPort { return apiServers(agent.Members()) }
	cfg.Nodes = func() []sched.NodeHealth { return healthOf(agent.Members()) }
	cfg.Report = func(r sched.Report) { n.board.update(func(s *Status) { s.Leading = &r }) }
	return cfg
}

// healthOf gives the controllers the membership's view of the nodes.
func healthOf(members []gossip.Member) []sched.NodeHealth {
	out := make([]sched.NodeHealth, 0, len(members))
	for _, m := range members {
		out = append(out, sched.NodeHealth{
			Name: m.Name, State: sched.NodeState(m.State), Since: m.Since, Until: m.Until,
			Birth: uint64(m.Birth), Unheard: m.Unheard, KubeletDown: m.NoPods,
		})
	}
	return out
}

// apiServers are the addresses at which members answer now.
func apiServers(members []gossip.Member) []netip.AddrPort {
	var out []netip.AddrPort
	for _, m := range members {
		if m.State == gossip.StateAlive && m.API.IsValid() {
			out = append(out, m.API)
		}
	}
	return out
}
