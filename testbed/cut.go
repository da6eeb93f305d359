package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// cutTable is the nftables table, in the bridge's namespace, whose rules
// drop frames between ports.
const cutTable = "testbed-cut"

// Cut drops every frame between a node of one set and a node of the other,
// in both directions, beside cuts made before: those of open connections and
// of tunnels as well. It returns when that is in effect and verified. Nodes
// that are off stay cut when they start.
func (c *Cluster) Cut(ctx context.Context, a, b []string) error {
	return c.cut(ctx, a, b, false)
}

// CutOneWay drops what the nodes of one set send to those of the other, and
// not what they are sent. ARP passes, lest the cut become one in both
// directions as soon as an address has to be looked up.
func (c *Cluster) CutOneWay(ctx context.Context, from, to []string) error {
	return c.cut(ctx, from, to, true)
}

func (c *Cluster) cut(ctx context.Context, a, b []string, oneWay bool) error {
	return c.locked(func(s *state) error {
		if len(a) == 0 || len(b) == 0 {
			return errors.New("cut: two sets of nodes are needed")
		}
		for _, name := range slices.Concat(a, b) {
			if _, err := s.node(name); err != nil {
				return fmt.Errorf("cut: %w", err)
			}
		}
		for _, x := range a {
			for _, y := range b {
				if x == y {
					return fmt.Errorf("cut: %s is on both sides", x)
				}
				s.addCut(x, y, oneWay)
			}
		}
		if err := c.save(s); err != nil {
			return err
		}
		if err := c.applyCuts(s.Cuts); err != nil {
			return err
		}
		return c.verify(ctx, s, s.Cuts, false)
	})
}

// Heal undoes all cuts. It returns when every pair of running nodes that was
// cut reaches each other again.
func (c *Cluster) Heal(ctx context.Context) error {
	return c.locked(func(s *state) error {
		healed := s.Cuts
		if err := c.applyCuts(nil); err != nil {
			return err
		}
		s.Cuts = nil
		if err := c.save(s); err != nil {
			return err
		}
		return c.verify(ctx, s, healed, true)
	})
}

// applyCuts replaces the rules in one transaction.
func (c *Cluster) applyCuts(cuts []cutPair) error {
	ns, err := netns.GetFromPath(c.bridgeFile())
	if err != nil {
		return fmt.Errorf("apply cuts: %w", err)
	}
	defer func() { _ = ns.Close() }()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("apply cuts: %w", err)
	}
	// Adding first makes the delete hold whether or not the table is there.
	table := conn.AddTable(&nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge})
	conn.DelTable(table)
	if len(cuts) > 0 {
		table = conn.AddTable(&nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge})
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for _, p := range cuts {
			rules := [][]expr.Any{dropBetween(p.A, p.B), dropBetween(p.B, p.A)}
			if p.OneWay {
				rules = [][]expr.Any{slices.Concat(notARP(), dropBetween(p.A, p.B))}
			}
			for _, exprs := range rules {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("apply cuts: %w", err)
	}
	return nil
}

func dropBetween(from, to string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(from)},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(to)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

func notARP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0x08, 0x06}},
	}
}

func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// verify probes each pair, where both nodes are on and plugged in, until it
// finds what is wanted. A connection needs both directions, so that a cut one
// way shows as well.
func (c *Cluster) verify(ctx context.Context, s *state, pairs []cutPair, connected bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, p := range pairs {
		a, errA := s.node(p.A)
		b, errB := s.node(p.B)
		if errA != nil || errB != nil || !a.reachable() || !b.reachable() {
			continue
		}
		g.Go(func() error {
			what := fmt.Sprintf("probe %s to %s", p.A, p.B)
			return poll(ctx, 20*time.Millisecond, what, func() (bool, error) {
				got, err := probe(a.Init.PID, b.Addr, 200*time.Millisecond)
				return got == connected, err
			})
		})
	}
	return g.Wait()
}

// probe reports whether a TCP segment from the network of pid to a closed
// port of addr is answered, if only with a refusal.
func probe(pid int, addr netip.Addr, timeout time.Duration) (bool, error) {
	return inNetns(fmt.Sprintf("/proc/%d/ns/net", pid), func() (bool, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return false, fmt.Errorf("probe: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		const discard = 9
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: discard, Addr: addr.As4()})
		if errors.Is(err, unix.EINPROGRESS) {
			n, perr := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(timeout.Milliseconds()))
			if perr != nil || n == 0 {
				return false, nil
			}
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
				return false, fmt.Errorf("probe: %w", err)
			}
			err = nil
			if code != 0 {
				err = unix.Errno(code)
			}
		}
		return err == nil || errors.Is(err, unix.ECONNREFUSED), nil
	})
}
