package simulate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
)

// Port is the one port of every simulated node.
const Port = 7443

// Cluster is a number of nodes on one network. It belongs to one goroutine.
type Cluster struct {
	Net   *Network
	Nodes []*Node
	// Config, when set, changes a node's configuration before it starts.
	Config func(*gossip.Config)
	// Log receives what the agents log; discarded when nil.
	Log *slog.Logger
	// Replica makes the replica of a node; nil for one in memory.
	Replica func(*Node) gossip.Replica
}

// Node is one simulated node.
type Node struct {
	Name    string
	Number  crdt.NodeNumber
	Addr    netip.AddrPort
	Replica gossip.Replica
	Agent   *gossip.Agent // nil while it is down

	cluster *Cluster
	cancel  context.CancelFunc
	done    chan error
	starts  int
}

// NewCluster returns a cluster of n nodes, none of them started.
func NewCluster(net *Network, n int) *Cluster {
	c := &Cluster{Net: net}
	for range n {
		c.Add()
	}
	return c
}

// Add adds a node, not started.
func (c *Cluster) Add() *Node {
	i := len(c.Nodes) + 1
	n := &Node{
		Name: fmt.Sprintf("n%d", i), Number: crdt.NodeNumber(i), cluster: c, //nolint:gosec // few nodes
		Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Port), //nolint:gosec // likewise
	}
	c.Nodes = append(c.Nodes, n)
	return n
}

// Memory returns the node's replica, which must be one in memory.
func (n *Node) Memory() *Replica { return n.Replica.(*Replica) }

// Start starts the agent. Its seeds are the nodes' addresses given.
func (n *Node) Start(seeds ...netip.AddrPort) error {
	c := n.cluster
	n.starts++
	if n.Replica == nil {
		if c.Replica != nil {
			n.Replica = c.Replica(n)
		} else {
			n.Replica = NewReplica(crdt.Origin(n.Number)<<16 | crdt.Origin(n.starts)) //nolint:gosec // unique
		}
	}
	cfg := gossip.DefaultConfig()
	cfg.Name, cfg.Number, cfg.Birth = n.Name, n.Number, crdt.StampAt(time.Now())
	cfg.Cluster, cfg.Version = "simulated", "v1.0.0"
	cfg.Bind, cfg.API = n.Addr, netip.AddrPortFrom(n.Addr.Addr(), 6443)
	cfg.Identity = func() (*tls.Certificate, *x509.CertPool, error) { return nil, nil, errors.New("not in a simulation") }
	cfg.Keys = [][]byte{make([]byte, 32)}
	cfg.Seeds = func() []netip.AddrPort { return seeds }
	cfg.Store, cfg.Network = n.Replica, c.Net
	if c.Log != nil {
		cfg.Log = c.Log.With("node", n.Name)
	}
	if c.Config != nil {
		c.Config(&cfg)
	}
	agent, err := gossip.New(cfg)
	if err != nil {
		return err
	}
	if r, ok := n.Replica.(*Replica); ok {
		r.Hold = agent.Hold
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.Agent, n.cancel, n.done = agent, cancel, make(chan error, 1)
	go func() { n.done <- agent.Run(ctx) }()
	return nil
}

// Stop ends the agent in good order, and returns what its Run did.
func (n *Node) Stop() error {
	if n.Agent == nil {
		return nil
	}
	n.cancel()
	n.Agent = nil
	return <-n.done
}

// Done delivers what the agent's Run returned.
func (n *Node) Done() <-chan error { return n.done }

// Kill ends the agent as kill -9 does: its connections are reset.
func (n *Node) Kill() error {
	n.cluster.Net.Reset(n.Addr.Addr())
	return n.Stop()
}

// Crash ends the node as a loss of power does: its peers hear nothing more.
func (n *Node) Crash() error {
	n.cluster.Net.Dark(n.Addr.Addr())
	return n.Stop()
}

// Light gives the node its power back. Start it next.
func (n *Node) Light() { n.cluster.Net.Light(n.Addr.Addr()) }

// StartAll starts all nodes, the first first; the others seek it.
func (c *Cluster) StartAll() error {
	for i, n := range c.Nodes {
		var seeds []netip.AddrPort
		if i > 0 {
			seeds = []netip.AddrPort{c.Nodes[0].Addr}
		}
		if err := n.Start(seeds...); err != nil {
			return err
		}
		Pass(time.Millisecond) // births differ
	}
	return nil
}

// StopAll stops all nodes that run.
func (c *Cluster) StopAll() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.Stop())
	}
	return errors.Join(errs...)
}

// Pass lets simulated time pass.
func Pass(d time.Duration) { <-time.After(d) }

// Await waits until cond holds, looking as often as step says, for at most
// limit. It reports how long that took.
func Await(limit, step time.Duration, cond func() bool) (time.Duration, bool) {
	start := time.Now()
	for !cond() {
		if time.Since(start) >= limit {
			return time.Since(start), false
		}
		Pass(step)
	}
	return time.Since(start), true
}
