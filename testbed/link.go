package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
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

// Addr is the address of a node.
func (c *Cluster) Addr(node string) (netip.Addr, error) {
	s, err := c.load()
	if err != nil {
		return netip.Addr{}, err
	}
	n, err := s.node(node)
	if err != nil {
		return netip.Addr{}, err
	}
	return n.Addr, nil
}

// File is where a file of a node's own disk lies on this machine: what is
// under /var, /tmp, /srv or /mnt there.
func (c *Cluster) File(node, path string) string { return c.path("nodes", node, "disk", path) }

// Tap opens a packet socket on a node's port of the bridge: what is read are
// the frames to and from the node, what is written goes to the node as if it
// came over the wire.
func (c *Cluster) Tap(node string) (*os.File, error) {
	f, err := inNetns(c.bridgeFile(), func() (*os.File, error) {
		link, err := net.InterfaceByName(node)
		if err != nil {
			return nil, err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return nil, err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
			return nil, errors.Join(err, unix.Close(fd))
		}
		return os.NewFile(uintptr(fd), "tap of "+node), nil
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", node, err)
	}
	return f, nil
}
