package testbed

import (
	"context"
	"fmt"
)

// Kill ends the daemon of a node with SIGKILL and returns when it is dead.
// Nothing else is touched: pods live on.
func (c *Cluster) Kill(_ context.Context, node string) error {
	return c.withNode(node, func(_ *state, n *nodeState) error {
		if n.Paused {
			return fmt.Errorf("kill %s: it is paused, resume it first", node)
		}
		if _, err := ask(n.Init, request{Op: opKill}, nil); err != nil {
			return fmt.Errorf("kill %s: %w", node, err)
		}
		return nil
	})
}

// Crash is a power loss of a node: when it returns, every process of the
// node is gone without a word to its peers, and so are its link and /run.
// The disk stays, see the package comment for what that means. A node that
// is off is no error.
func (c *Cluster) Crash(ctx context.Context, node string) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		return c.powerOff(ctx, s, n)
	})
}

// powerOff ends all of a node but its disk.
func (c *Cluster) powerOff(ctx context.Context, s *state, n *nodeState) error {
	// The link goes first: a dying process sends FIN and RST, a machine
	// without power does not.
	if err := c.unplug(n.Name); err != nil {
		return fmt.Errorf("crash %s: %w", n.Name, err)
	}
	// Process 1 takes all others of its pid namespace with it. A frozen one
	// dies on v1 when it thaws.
	thaw := func() error {
		if !n.Paused {
			return nil
		}
		return freeze(ctx, s.ID, n.Name, false)
	}
	if err := n.Init.killAndWait(ctx, thaw); err != nil {
		return fmt.Errorf("crash %s: %w", n.Name, err)
	}
	if err := removeCgroups(ctx, s.ID, n.Name); err != nil {
		return fmt.Errorf("crash %s: %w", n.Name, err)
	}
	n.Init, n.Paused = process{}, false
	return c.save(s)
}

// Start brings back what Kill or Crash took: it boots the node if it is off,
// starts the daemon, and returns when the node is ready.
func (c *Cluster) Start(ctx context.Context, node string) error {
	err := c.withNode(node, func(s *state, n *nodeState) error {
		if n.Paused {
			return fmt.Errorf("start %s: it is paused, resume it", node)
		}
		if !n.Init.alive() {
			// After a crash of our own there may be remains.
			if err := c.powerOff(ctx, s, n); err != nil {
				return err
			}
			if err := c.boot(ctx, s, n); err != nil {
				return err
			}
		}
		return c.startDaemon(s, n)
	})
	if err != nil {
		return err
	}
	return c.WaitReady(ctx, node)
}

// Pause freezes every process of a node and returns when they stand still.
// Its kernel goes on: connections stay open and are acknowledged.
func (c *Cluster) Pause(ctx context.Context, node string) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		if !n.Init.alive() {
			return fmt.Errorf("pause %s: the node is off", node)
		}
		n.Paused = true
		if err := c.save(s); err != nil {
			return err
		}
		return freeze(ctx, s.ID, n.Name, true)
	})
}

// Resume undoes Pause.
func (c *Cluster) Resume(ctx context.Context, node string) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		if !n.Init.alive() {
			return fmt.Errorf("resume %s: the node is off", node)
		}
		if err := freeze(ctx, s.ID, n.Name, false); err != nil {
			return err
		}
		n.Paused = false
		return c.save(s)
	})
}

func (c *Cluster) withNode(node string, fn func(*state, *nodeState) error) error {
	return c.locked(func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		return fn(s, n)
	})
}
