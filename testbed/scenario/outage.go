package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Outage crashes the nodes one after the other until one is left: in the given
// order, or, for a name that is empty, whoever leads at that moment. The last
// one answers kubectl and runs a new Deployment. Then all start again, and
// nothing that was acknowledged in between may be missing.
func (b *Bed) Outage(ctx context.Context, order []string) error {
	s, err := b.space(ctx, "outage", b.Nodes[0])
	if err != nil {
		return err
	}
	log := newLedger()
	write := func(nodes []string, when string) error {
		for _, node := range nodes {
			name := fmt.Sprintf("%s-%s", when, node)
			if err := s.writeOnce(ctx, log, node, name); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(b.Nodes, "before"); err != nil {
		return err
	}
	if err := s.deploy(ctx, b.Nodes[0], "kept", 2); err != nil {
		return err
	}
	if err := s.settle(ctx, b.Nodes[0], "kept", b.Nodes); err != nil {
		return err
	}
	left := b.Nodes
	var crashed []string
	for i, victim := range order {
		if victim == "" {
			if victim, err = b.OneLeader(ctx, left); err != nil {
				return err
			}
		}
		if err := b.Crash(ctx, victim); err != nil {
			return err
		}
		crashed = append(crashed, victim)
		left = b.Others(crashed...)
		if err := write(left, fmt.Sprintf("after-%d", i+1)); err != nil {
			return err
		}
	}
	if err := s.soleSurvivor(ctx, left[0], crashed); err != nil {
		return err
	}
	if err := write(left, "alone"); err != nil {
		return err
	}
	began := time.Now()
	if err := b.Start(ctx, crashed...); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	b.Printf("started again: one cluster, equal digests after %s", seconds(time.Since(began)))
	if err := log.check(ctx, s, b.Nodes); err != nil {
		return err
	}
	for _, node := range b.Nodes {
		for _, name := range []string{"kept", "new"} {
			if err := s.settle(ctx, node, name, b.Nodes); err != nil {
				return err
			}
		}
	}
	return s.end(ctx, left[0])
}

// writeOnce creates an object through a node, and puts it in the ledger. It
// tries again while the node's API is busy with the loss of another.
func (s *space) writeOnce(ctx context.Context, log *ledger, node, name string) error {
	err := s.eventually(ctx, "a write through "+node, func(ctx context.Context) error {
		err := s.config(ctx, node, name, map[string]string{"word": "kept by " + node})
		if exists(err) {
			return nil
		}
		return err
	})
	if err == nil {
		log.field(name, "word", "kept by "+node)
	}
	return err
}

// soleSurvivor tries the last node: kubectl on it, and a new Deployment.
func (s *space) soleSurvivor(ctx context.Context, node string, crashed []string) error {
	began := time.Now()
	err := s.eventually(ctx, "kubectl on "+node, func(ctx context.Context) error {
		out, err := s.Kubectl(ctx, node, "get", "nodes", "-o", "name")
		if err == nil && len(strings.Fields(out)) != len(s.Nodes) {
			err = fmt.Errorf("nodes: %s", out)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.Printf("%s crashed: %s alone answered kubectl after %s", strings.Join(crashed, ", "), node, seconds(time.Since(began)))
	began = time.Now()
	err = s.eventually(ctx, "a new deployment on "+node, func(ctx context.Context) error {
		return s.deploy(ctx, node, "new", 1)
	})
	if err != nil {
		return err
	}
	if err := s.settle(ctx, node, "new", []string{node}); err != nil {
		return err
	}
	s.Printf("and ran a new Deployment %s after it was asked", seconds(time.Since(began)))
	return nil
}
