package testbed

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
)

// Kill ends the daemons of nodes with SIGKILL and returns when they are dead.
// Nothing else is touched: pods live on.
func (c *Cluster) Kill(_ context.Context, nodes ...string) error {
	return c.endDaemons("kill", opKill, nodes)
}

// Stop ends the daemons of nodes with SIGTERM, as a service manager does, and
// returns when they have ended. Pods live on.
func (c *Cluster) Stop(_ context.Context, nodes ...string) error {
	return c.endDaemons("stop", opStop, nodes)
}

func (c *Cluster) endDaemons(name, op string, nodes []string) error {
	return c.withNodes(nodes, func(_ *state, ns []*nodeState) error {
		var g errgroup.Group
		for _, n := range ns {
			if n.Paused {
				return fmt.Errorf("%s %s: it is paused, resume it first", name, n.Name)
			}
			g.Go(func() error {
				if _, err := ask(n.Init, request{Op: op}, nil); err != nil {
					return fmt.Errorf("%s %s: %w", name, n.Name, err)
				}
				return nil
			})
		}
		return g.Wait()
	})
}

// Crash is a power loss of nodes at one time: when it returns, every process
// of theirs is gone without a word to its peers, and so are their links and
// /run. The disks stay, see the package comment for what that means. A node
// that is off is no error.
func (c *Cluster) Crash(ctx context.Context, nodes ...string) error {
	return c.withNodes(nodes, func(s *state, ns []*nodeState) error {
		// The links go first: a dying process sends FIN and RST, a machine
		// without power does not.
		for _, n := range ns {
			if err := c.unplug(n.Name); err != nil {
				return fmt.Errorf("crash %s: %w", n.Name, err)
			}
		}
		for _, n := range ns {
			if err := c.powerOff(ctx, s, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// powerOff ends all of a node but its disk.
func (c *Cluster) powerOff(ctx context.Context, s *state, n *nodeState) error {
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

// Wipe takes the power of a node and gives it an empty disk: when it starts
// again it is a new machine, which joins as any other.
func (c *Cluster) Wipe(ctx context.Context, node string) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		if err := c.powerOff(ctx, s, n); err != nil {
			return err
		}
		if err := refuseMounts(c.path("nodes", node)); err != nil {
			return err
		}
		n.Member = false
		if err := c.save(s); err != nil {
			return err
		}
		if err := os.RemoveAll(c.path("nodes", node)); err != nil {
			return fmt.Errorf("wipe %s: %w", node, err)
		}
		return nil
	})
}

// Start brings back what Kill, Stop or Crash took: it boots the nodes that
// are off, starts the daemons side by side, and returns when all are ready.
func (c *Cluster) Start(ctx context.Context, nodes ...string) error {
	if err := c.StartOnly(ctx, nodes...); err != nil {
		return err
	}
	return sideBySide(ctx, nodes, c.WaitReady)
}

// StartOnly is Start without the wait.
func (c *Cluster) StartOnly(ctx context.Context, nodes ...string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		env, err := c.joinEnv(ctx, s, n)
		if err != nil {
			return err
		}
		err = c.withNode(node, func(s *state, n *nodeState) error {
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
			return c.startDaemon(s, n, env...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Pause freezes every process of nodes and returns when they stand still.
// Their kernel goes on: connections stay open and are acknowledged.
func (c *Cluster) Pause(ctx context.Context, nodes ...string) error {
	return c.withNodes(nodes, func(s *state, ns []*nodeState) error {
		for _, n := range ns {
			if !n.Init.alive() {
				return fmt.Errorf("pause %s: the node is off", n.Name)
			}
			n.Paused = true
			if err := c.save(s); err != nil {
				return err
			}
			if err := freeze(ctx, s.ID, n.Name, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// Resume undoes Pause.
func (c *Cluster) Resume(ctx context.Context, nodes ...string) error {
	return c.withNodes(nodes, func(s *state, ns []*nodeState) error {
		for _, n := range ns {
			if !n.Init.alive() {
				return fmt.Errorf("resume %s: the node is off", n.Name)
			}
			if err := freeze(ctx, s.ID, n.Name, false); err != nil {
				return err
			}
			n.Paused = false
			if err := c.save(s); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Cluster) withNode(node string, fn func(*state, *nodeState) error) error {
	return c.withNodes([]string{node}, func(s *state, ns []*nodeState) error { return fn(s, ns[0]) })
}

// withNodes runs fn with the nodes' state while no other command can change
// it. An unknown node is found before anything is done to the others.
func (c *Cluster) withNodes(nodes []string, fn func(*state, []*nodeState) error) error {
	return c.locked(func(s *state) error {
		found := make([]*nodeState, 0, len(nodes))
		for _, node := range nodes {
			n, err := s.node(node)
			if err != nil {
				return err
			}
			found = append(found, n)
		}
		return fn(s, found)
	})
}
