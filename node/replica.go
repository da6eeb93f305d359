package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
)

// ErrStartAgain means that the daemon has to be started again, and that this
// will help: its replica has to be fetched anew, or its address has changed.
var ErrStartAgain = errors.New("start the daemon again")

// replica is this node's copy of the cluster's state and its exchange with the
// other members.
type replica struct {
	db       *store.Store
	agent    *gossip.Agent
	identity *pki.PeerIdentity
	tokens   *join.Tokens
	registry *join.Registry
	schemas  *schemas
}

func (c *Config) storeDir() string { return filepath.Join(c.DataDir, "store") }

// openReplica opens the store, which then has to be closed, and makes the
// agent. It starts neither.
func (n *Node) openReplica(m *membership, keys *pki.Bundle) (*replica, error) {
	identity, err := keys.PeerIdentity()
	if err != nil {
		return nil, err
	}
	gossipKeys, err := identity.GossipKeys()
	if err != nil {
		return nil, err
	}
	r := &replica{identity: identity, schemas: newSchemas()}
	cfg := store.DefaultConfig(n.cfg.storeDir())
	cfg.Log, cfg.Node, cfg.Schema = n.log, m.Number, r.schemas
	cfg.RunFile = filepath.Join(n.cfg.StateDir, "store.run")
	cfg.Hold = func(rev int64, release func()) { r.agent.Hold(rev, release) }
	db, err := store.Open(cfg)
	if err != nil {
		return nil, err
	}
	r.db = db
	gossipCfg := gossip.DefaultConfig()
	gossipCfg.Log, gossipCfg.Name, gossipCfg.Number = n.log, m.Name, m.Number
	gossipCfg.Birth = crdt.StampAt(time.Now())
	gossipCfg.Cluster, gossipCfg.Version = keys.Cluster, Version
	gossipCfg.Bind = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(n.cfg.Port)) //nolint:gosec // Validate bounds the port
	gossipCfg.Advertise, gossipCfg.API = n.cfg.peerAddr(), n.cfg.apiAddr()
	gossipCfg.Identity, gossipCfg.Keys = identity.TLS, gossipKeys
	gossipCfg.Seeds = func() []netip.AddrPort { return addresses(m.Seeds) }
	gossipCfg.Store = gossip.Replicate(db)
	if err := n.serveJoins(r, &gossipCfg, m); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if r.agent, err = gossip.New(gossipCfg); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return r, nil
}

// serveJoins lets machines with a token become members.
func (n *Node) serveJoins(r *replica, cfg *gossip.Config, m *membership) error {
	r.tokens, r.registry = join.NewTokens(r.db, time.Now), join.NewRegistry(r.db, time.Now)
	server, err := join.NewServer(join.Config{
		Name: m.Name, Version: Version, Cluster: cfg.Cluster, Address: cfg.Advertise,
		Settings: m.settings(),
		Tokens:   r.tokens, Registry: r.registry,
		Live:     func() []join.Live { return liveMembers(r.agent.Members()) },
		Material: func() (pki.Material, error) { return pki.Export(n.cfg.pkiDir()) },
		Now:      time.Now, Log: n.log,
	})
	if err != nil {
		return err
	}
	cfg.Join = server.Serve
	return nil
}

func liveMembers(members []gossip.Member) []join.Live {
	var out []join.Live
	for _, m := range members {
		if m.Live() {
			out = append(out, join.Live{Name: m.Name, Address: m.Addr})
		}
	}
	return out
}

// measure fills in what the replica says of itself and of the cluster.
func (r *replica) measure(s *Status) {
	s.Status = r.agent.Status()
	s.Store = StoreStatus{Revision: r.db.Revision(), CompactedRevision: r.db.CompactRevision(), Bytes: r.db.Size()}
}

// storePart runs the store. It closes it at the end.
func (n *Node) storePart(r *replica) part {
	return part{name: "store", stopWithin: slowStop, run: func(ctx context.Context, ready func()) error {
		ready()
		var group sync.WaitGroup
		group.Go(func() { r.schemas.follow(ctx, r.db, n.log) })
		err := r.db.Run(ctx)
		err = errors.Join(err, r.db.Close())
		group.Wait()
		return err
	}}
}

// gossipPart takes part in the cluster. It is ready once the replica may be
// served: a new one when it is complete, any other after a bounded try to catch
// up.
func (n *Node) gossipPart(r *replica, m *membership) part {
	return part{name: "membership", stopWithin: slowStop, run: func(ctx context.Context, ready func()) error {
		failed := make(chan error, 1)
		agentCtx, stop := context.WithCancel(ctx)
		defer stop()
		go func() { failed <- r.agent.Run(agentCtx) }()
		enter := make(chan error, 1)
		go func() { enter <- n.enterReplica(agentCtx, r, m) }()
		for {
			select {
			case err := <-failed:
				return n.ended(err, m)
			case err := <-enter:
				if err != nil && ctx.Err() == nil {
					stop()
					return errors.Join(err, <-failed)
				}
				ready()
				enter = nil
			}
		}
	}}
}

func (n *Node) enterReplica(ctx context.Context, r *replica, m *membership) error {
	select {
	case <-r.agent.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	if m.Complete {
		if err := r.agent.CatchUp(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("starting without all that the members have", "err", err)
		}
	}
	for !m.Complete || !r.agent.Serving() {
		if err := r.agent.Bootstrap(ctx); err != nil {
			return fmt.Errorf("copy the cluster's state: %w", err)
		}
		if err := n.amend(m, func() { m.Complete = true }); err != nil {
			return err
		}
	}
	return n.register(ctx, r, m)
}

// ended turns the end of the agent into what the daemon has to do. A replica
// that missed what the others have forgotten would bring back what was deleted:
// the next start fetches it anew before it serves.
func (n *Node) ended(err error, m *membership) error {
	if !errors.Is(err, gossip.ErrForgotten) {
		return err
	}
	if saveErr := n.amend(m, func() { m.Complete = false }); saveErr != nil {
		return errors.Join(err, saveErr)
	}
	return fmt.Errorf("%w: %w", ErrStartAgain, err)
}

// etcdPart serves the etcd API over the store.
func (n *Node) etcdPart(db *store.Store) (part, error) {
	cfg := etcd.DefaultConfig()
	cfg.Socket, cfg.Store, cfg.Log, cfg.Name = n.cfg.EtcdSocket(), db, n.log, n.cfg.NodeName
	server, err := etcd.New(cfg)
	if err != nil {
		return part{}, err
	}
	return part{name: "etcd API", stopWithin: slowStop, run: untilReady(server.Run, server.Ready())}, nil
}

// addresses reads the members' addresses; what is none is left out.
func addresses(hosts []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, host := range hosts {
		if addr, err := netip.ParseAddrPort(host); err == nil {
			out = append(out, addr)
		}
	}
	return out
}
