package scenario

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Blink pauses a node for a moment, and has a daemon end and start again: no
// pod may move, be remade or start again. What is given as during runs while the
// daemon of the stopped node is down.
func (b *Bed) Blink(ctx context.Context, pause, watchFor time.Duration, during func(ctx context.Context, stopped string) error) error {
	s, err := b.space(ctx, "blink", b.Nodes[0])
	if err != nil {
		return err
	}
	if err := s.deploy(ctx, b.Nodes[0], "web", int32(len(b.Nodes))); err != nil {
		return err
	}
	if err := s.settle(ctx, b.Nodes[0], "web", b.Nodes); err != nil {
		return err
	}
	before, err := s.pods(ctx, b.Nodes[0], "web")
	if err != nil {
		return err
	}
	same := func(ctx context.Context) error {
		for _, node := range b.Nodes {
			var now []corev1.Pod
			if err := s.eventually(ctx, "the pods on "+node, func(ctx context.Context) (err error) {
				now, err = s.pods(ctx, node, "web")
				return err
			}); err != nil {
				return err
			}
			if !maps.Equal(uids(now), uids(before)) {
				return fmt.Errorf("on %s the pods are %v, were %v", node, uids(now), uids(before))
			}
		}
		return nil
	}
	stopped, paused := b.Nodes[len(b.Nodes)-1], b.Nodes[1%len(b.Nodes)]
	steps := []struct {
		what string
		do   func() error
	}{
		{"pause of " + paused + " for " + seconds(pause), func() error {
			if err := b.Pause(ctx, paused); err != nil {
				return err
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			return b.Resume(ctx, paused)
		}},
		{"SIGTERM and start of " + stopped, func() error {
			if err := b.Stop(ctx, stopped); err != nil {
				return err
			}
			if during != nil {
				if err := during(ctx, stopped); err != nil {
					return err
				}
			}
			return b.Start(ctx, stopped)
		}},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		took := time.Since(began)
		if err := b.WaitWhole(ctx, b.Nodes); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		if err := b.holds(ctx, watchFor, "after "+step.what, same); err != nil {
			return err
		}
		b.Printf("%s, %s: the same %d pods on the same nodes for %s after", step.what, seconds(took), len(before), seconds(watchFor))
	}
	return s.end(ctx, b.Nodes[0])
}
