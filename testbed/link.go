package testbed

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Unplug pulls a node's cable: no carrier, and nobody reaches it or is reached
// by it, the bridge neither. The address and the routes of a running node stay,
// as they do on a machine. When it boots unplugged there is no default route;
// with bare there is no address either, as on a machine that asks for one and
// hears nothing, and a running node loses both at once. A node that is off is
// unplugged when it starts.
func (c *Cluster) Unplug(_ context.Context, node string, bare bool) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		n.Link = linkUnplugged
		if bare {
			n.Link = linkBare
		}
		if err := c.save(s); err != nil {
			return err
		}
		if !n.Init.alive() {
			return nil
		}
		if err := c.carrier(n.Name, false); err != nil {
			return fmt.Errorf("unplug %s: %w", node, err)
		}
		if !bare {
			return nil
		}
		if err := configureLink(n.Addr, s.Subnet, n.Init.PID, n.Link); err != nil {
			return fmt.Errorf("unplug %s: %w", node, err)
		}
		return nil
	})
}

// Plug puts the cable back, with the address and the default route, and
// returns when the node reaches the bridge.
func (c *Cluster) Plug(ctx context.Context, node string) error {
	return c.withNode(node, func(s *state, n *nodeState) error {
		n.Link = linkUpState
		if n.Init.alive() {
			if err := c.carrier(n.Name, true); err != nil {
				return fmt.Errorf("plug %s: %w", node, err)
			}
			if err := configureLink(n.Addr, s.Subnet, n.Init.PID, n.Link); err != nil {
				return fmt.Errorf("plug %s: %w", node, err)
			}
		}
		if err := c.save(s); err != nil || !n.Init.alive() {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return poll(ctx, 20*time.Millisecond, "plug "+node, func() (bool, error) {
			return probe(n.Init.PID, host(s.Subnet, 1), 200*time.Millisecond)
		})
	})
}

// carrier switches a node's port on the bridge on or off.
func (c *Cluster) carrier(port string, on bool) error {
	br, err := c.bridge()
	if err != nil {
		return err
	}
	defer br.Close()
	l, err := br.LinkByName(port)
	if err != nil {
		return err
	}
	if on {
		return br.LinkSetUp(l)
	}
	return br.LinkSetDown(l)
}

// reachable reports whether a node is on and plugged in.
func (n *nodeState) reachable() bool { return n.Link == linkUpState && n.Init.alive() }

// Dial connects from the network of a node, or from the bridge's when node is
// empty: the place of a client outside the cluster, which no cut separates from
// any node. The address is literal, no name.
func (c *Cluster) Dial(ctx context.Context, node, network, addr string) (net.Conn, error) {
	ns := c.bridgeFile()
	if node != "" {
		s, err := c.load()
		if err != nil {
			return nil, err
		}
		n, err := s.node(node)
		if err != nil {
			return nil, err
		}
		if !n.Init.alive() {
			return nil, fmt.Errorf("dial from %s: the node is off", node)
		}
		ns = fmt.Sprintf("/proc/%d/ns/net", n.Init.PID)
	}
	// A socket stays in the namespace it was made in.
	return inNetns(ns, func() (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	})
}
