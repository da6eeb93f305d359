package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
)

// How long a machine keeps asking a member that does not answer to let it in,
// and the pause between two tries.
const (
	joinWithin = 5 * time.Minute
	joinRetry  = 2 * time.Second
)

// ErrLeft means that this node left its cluster.
var ErrLeft = errors.New("this node has left its cluster")

// enterCluster makes this node a member: of the cluster it is in already, of
// the one that it is told to join, or of a new one.
func (n *Node) enterCluster(ctx context.Context) (*membership, error) {
	m, err := n.cfg.loadMembership()
	switch {
	case err != nil:
		return nil, err
	case m != nil && m.Left:
		return nil, fmt.Errorf("%w; to join one, remove %s first, or give another --data-dir", ErrLeft, n.cfg.DataDir)
	case m == nil && n.cfg.Join == "":
		if cluster, err := pki.ClusterID(n.cfg.pkiDir()); err != nil || cluster != "" {
			return nil, errors.Join(err, fmt.Errorf("%s holds the keys of a cluster that this machine did not finish joining; start it with --join again, or remove the directory to begin a cluster of its own", n.cfg.DataDir))
		}
		if err := n.cfg.fitFamilies(); err != nil {
			return nil, err
		}
		m = n.cfg.newMembership(firstNumber)
		m.Complete, n.founds, n.enters = true, true, true
		return m, n.cfg.saveMembership(m)
	case m == nil:
		if m, err = n.join(ctx); err != nil {
			return nil, err
		}
		n.enters = true
	case n.cfg.Join != "":
		n.log.Info("this node is a member already, --join is not used", "name", m.Name)
	}
	if err := n.cfg.adopt(m); err != nil {
		return nil, err
	}
	if err := errors.Join(n.cfg.validateCIDRs()...); err != nil {
		return nil, fmt.Errorf("use the cluster's networks: %w", err)
	}
	if err := n.cfg.fitFamilies(); err != nil {
		return nil, err
	}
	return m, nil
}

func (c *Config) newMembership(number crdt.NodeNumber) *membership {
	return &membership{
		Name: c.NodeName, Number: number,
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, ClusterDomain: c.ClusterDomain,
	}
}

// join asks a member to let this machine in and keeps what it grants.
func (n *Node) join(ctx context.Context) (*membership, error) {
	if _, err := os.Stat(n.cfg.storeDir()); err == nil {
		return nil, fmt.Errorf("--join %s: %s holds a cluster of its own; to give that up, remove it, or give another --data-dir", n.cfg.Join, n.cfg.DataDir)
	}
	token, err := join.ParseToken(n.cfg.Token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	machine, err := join.Machine(n.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	cluster, err := pki.ClusterID(n.cfg.pkiDir()) // of a join that was cut short, or a restore
	if err != nil {
		return nil, err
	}
	dialer := join.Dialer{Token: token, Request: join.Request{
		Name: n.cfg.NodeName, Machine: machine, Address: n.cfg.peerAddr(), Version: Version, Cluster: cluster,
	}}
	began := time.Now()
	grant, err := n.ask(ctx, &dialer)
	if err != nil {
		return nil, err
	}
	// What is the cluster's replaces what this node would have chosen.
	given := n.cfg
	n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.ClusterDomain = grant.Settings.ClusterCIDR, grant.Settings.ServiceCIDR, grant.Settings.ClusterDomain
	m := n.cfg.newMembership(grant.Number)
	for _, peer := range grant.Peers {
		m.Seeds = append(m.Seeds, peer.String())
	}
	if err := given.adopt(m); err != nil {
		return nil, err
	}
	if err := pki.Import(n.cfg.pkiDir(), grant.Material); err != nil {
		return nil, err
	}
	if err := n.cfg.saveMembership(m); err != nil {
		return nil, err
	}
	n.partReady("admitted", time.Since(began))
	return m, nil
}

// ask repeats the question while nobody answers or can, for a bounded time:
// machines that are set up together start together.
func (n *Node) ask(ctx context.Context, dialer *join.Dialer) (*join.Grant, error) {
	deadline := time.Now().Add(joinWithin)
	for told := false; ; told = true {
		grant, err := dialer.Do(ctx, n.cfg.Join)
		if err == nil || !join.Temporary(err) || ctx.Err() != nil || time.Now().After(deadline) {
			return grant, err
		}
		if !told {
			n.progress(Progress{Name: "waiting to join", Notes: []string{err.Error(), "trying again for " + joinWithin.String()}})
		}
		if !pause(ctx, joinRetry) {
			return nil, ctx.Err()
		}
	}
}
