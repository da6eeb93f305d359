package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Rotate replaces the members' keys while a client writes: no write fails, the
// replicas are equal, a token made before is useless, and a daemon that is
// killed afterwards is a member again.
func (b *Bed) Rotate(ctx context.Context) error {
	via, by := b.Nodes[0], b.Nodes[len(b.Nodes)-1]
	leader, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return err
	}
	if _, err := b.on(ctx, via, nil, "moot", "token", "create", "--description", "before"); err != nil {
		return err
	}
	s, err := b.space(ctx, "rotate", via)
	if err != nil {
		return err
	}
	var writes int
	var slowest, took time.Duration
	g, gctx := errgroup.WithContext(ctx)
	rotated, done := context.WithCancel(gctx)
	defer done()
	g.Go(func() error {
		for ; rotated.Err() == nil; writes++ {
			began := time.Now()
			if err := s.config(gctx, via, fmt.Sprintf("w%04d", writes), map[string]string{"n": fmt.Sprint(writes)}); err != nil {
				return err
			}
			slowest = max(slowest, time.Since(began))
		}
		return nil
	})
	g.Go(func() error {
		defer done()
		began := time.Now()
		_, err := b.on(gctx, by, nil, "moot", "keys", "rotate")
		took = time.Since(began)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	b.Printf("keys of %d members replaced in %s; %d writes meanwhile, the slowest %s, none failed", len(b.Nodes), seconds(took), writes, millis(slowest))
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	now, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return err
	}
	if now != leader {
		b.Printf("the leader was %s and is %s: it was taken for dead, as a busy machine may be", leader, now)
	}
	tokens, err := b.on(ctx, by, nil, "moot", "token", "list")
	if err != nil {
		return err
	}
	if !strings.Contains(tokens, "keys were rotated") {
		return fmt.Errorf("a token of before the rotation is listed as good:\n%s", tokens)
	}
	if err := b.Kill(ctx, by); err != nil {
		return err
	}
	if err := b.Start(ctx, by); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	data, err := s.data(ctx, by, fmt.Sprintf("w%04d", writes-1))
	if err != nil || data["n"] != fmt.Sprint(writes-1) {
		return fmt.Errorf("the last write, read on %s, is %v, %w", by, data, err)
	}
	return s.end(ctx, via)
}

// Restore makes a backup on one node, changes and deletes what is in it, and
// brings it back into the living cluster through another. With fresh, it also
// makes a new cluster of it: a node leaves, begins from the backup, and joins
// the old cluster again afterwards.
func (b *Bed) Restore(ctx context.Context, fresh bool) error {
	const file = "/tmp/cluster.backup"
	via, by := b.Nodes[0], b.Nodes[len(b.Nodes)-1]
	s, err := b.space(ctx, "restore", via)
	if err != nil {
		return err
	}
	for _, name := range []string{"kept", "changed", "deleted"} {
		if err := s.config(ctx, via, name, map[string]string{"is": "then"}); err != nil {
			return err
		}
	}
	if err := s.deploy(ctx, via, "web", 2); err != nil {
		return err
	}
	if err := s.settle(ctx, via, "web", b.Nodes); err != nil {
		return err
	}
	if err := os.RemoveAll(b.File(by, file)); err != nil { // of an earlier round
		return err
	}
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	began := time.Now()
	out, err := b.on(ctx, by, nil, "moot", "backup", file)
	if err != nil {
		return err
	}
	b.Printf("backup on %s in %s: %s", by, seconds(time.Since(began)), out)

	if err := s.patch(ctx, via, "changed", map[string]string{"is": "now"}); err != nil {
		return err
	}
	if _, err := b.Kubectl(ctx, via, "delete", "-n", s.name, "configmap/deleted", "deployment/web"); err != nil {
		return err
	}
	if err := s.config(ctx, via, "new", map[string]string{"is": "now"}); err != nil {
		return err
	}
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	if out, err = b.on(ctx, by, nil, "moot", "restore", "--into-living", file); err != nil {
		return err
	}
	b.Printf("restored into the living cluster: %s", out)
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	if err := s.want(ctx, via, map[string]string{"kept": "then", "changed": "then", "deleted": "then", "new": "now"}); err != nil {
		return err
	}
	if err := s.settle(ctx, via, "web", b.Nodes); err != nil {
		return err
	}
	if fresh {
		if err := s.restoreFresh(ctx, by, file); err != nil {
			return err
		}
	}
	return s.end(ctx, via)
}

// want checks what ConfigMaps hold, "" for none.
func (s *space) want(ctx context.Context, via string, want map[string]string) error {
	for name, is := range want {
		data, err := s.data(ctx, via, name)
		if err != nil || data["is"] != is {
			return fmt.Errorf("%s on %s is %v, want %q, %w", name, via, data, is, err)
		}
	}
	return nil
}

func (s *space) restoreFresh(ctx context.Context, node, file string) error {
	if _, err := s.on(ctx, node, nil, "moot", "leave"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.on(ctx, node, nil, "sh", "-c", "rm -rf /var/lib/moot/* && moot restore "+file); err != nil {
		return err
	}
	err := s.eventually(ctx, "the daemon that left is gone", func(ctx context.Context) error { return s.StartOnly(ctx, node) })
	if err != nil {
		return err
	}
	if err := s.WaitReady(ctx, node); err != nil {
		return err
	}
	s.Printf("a new cluster on %s in %s", node, seconds(time.Since(began)))
	if err := s.loadImage(ctx); err != nil {
		return err
	}
	m, err := s.Membership(ctx, node)
	if err != nil {
		return err
	}
	if len(m.Members) != 1 || m.Leader != node {
		return fmt.Errorf("the new cluster is not of its own: %+v", m)
	}
	if err := s.want(ctx, node, map[string]string{"kept": "then", "changed": "then", "deleted": "then", "new": ""}); err != nil {
		return err
	}
	if err := s.settle(ctx, node, "web", []string{node}); err != nil {
		return err
	}
	rest := s.Others(node)
	if err := s.WaitWhole(ctx, rest); err != nil {
		return fmt.Errorf("the old cluster: %w", err)
	}
	if data, err := s.data(ctx, rest[0], "new"); err != nil || data["is"] != "now" {
		return errors.Join(fmt.Errorf("the clusters mix: new is %v", data), err)
	}
	if err := s.rejoin(ctx, node); err != nil {
		return err
	}
	return s.wholeAgain(ctx)
}
