package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/node/pki/rotation"
)

const (
	rotationLook  = 2 * time.Second
	firstTokenTTL = 24 * time.Hour
)

// controls are what the commands of an operator work on, once there is an API.
func (n *Node) controls(keys *pki.Bundle, r *replica, m *membership, rotation *rotation.Runner) *Controls {
	return &Controls{
		Cluster: &departure{n: n, keys: keys, replica: r, member: m},
		Store:   r.db, Tokens: r.tokens, Rotation: rotation,
		Pin: r.identity.Pin, Address: n.cfg.peerAddr(),
		ID: keys.Cluster, Node: m.Name, PKIDir: n.cfg.pkiDir(), SpoolDir: n.cfg.DataDir,
		Settings: m.settings(),
	}
}

func (m *membership) settings() join.Settings {
	return join.Settings{ClusterCIDR: m.ClusterCIDR, ServiceCIDR: m.ServiceCIDR, ClusterDomain: m.ClusterDomain}
}

// rotation takes this node through rotations of the members' keys.
func (n *Node) rotation(r *replica) (*rotation.Runner, error) {
	machine, err := join.Machine(n.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	return rotation.New(rotation.Config{
		Name: n.cfg.NodeName, Machine: machine.Hash(), Dir: n.cfg.pkiDir(), Store: r.db,
		Members: func(ctx context.Context) (map[string]string, error) {
			list, err := r.registry.List(ctx)
			machines := make(map[string]string, len(list))
			for _, m := range list {
				machines[m.Name] = m.Machine
			}
			return machines, err
		},
		Leads: func() bool { return leads(r.agent) },
		Taken: func() error { return n.takeKeys(r) },
		Now:   time.Now, Log: n.log, Every: rotationLook,
	})
}

func rotationPart(r *rotation.Runner) part {
	return part{name: "key rotation", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		ready()
		return r.Run(ctx)
	}}
}

// takeKeys puts keys to use that were written to the directory: certificates
// are read at each handshake anyway.
func (n *Node) takeKeys(r *replica) error {
	if _, err := pki.Ensure(n.cfg.pkiDir(), n.pkiParams(), time.Now()); err != nil {
		return fmt.Errorf("issue certificates: %w", err)
	}
	keys, err := r.identity.GossipKeys()
	if err != nil {
		return err
	}
	return r.agent.SetKeys(keys)
}

// joinCommand makes a token and the command another machine joins with, or is
// the command that makes them.
func (n *Node) joinCommand(ctx context.Context, r *replica) (string, error) {
	if !n.cfg.ShowToken {
		return "sudo moot token create   (and on the other machine what it prints)", nil
	}
	pin, err := r.identity.Pin()
	if err != nil {
		return "", err
	}
	token, _, err := r.tokens.Create(ctx, pin, firstTokenTTL, "made when the cluster began")
	if err != nil {
		return "", errors.Join(errors.New("make join token"), err)
	}
	return fmt.Sprintf("sudo moot up --join %s --token %s   (for %s; later: moot token create)", n.cfg.peerAddr(), token.Text(), firstTokenTTL), nil
}
