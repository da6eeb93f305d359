package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mootkube/moot/node/join"
)

// standInLink is the interface that holds the node's address while no other
// does: a machine that boots with its network unplugged must still be able to
// run its pods and serve its API under the address it is known by.
const standInLink = "moot-standin"

// standInFor names the stand-in of an address: each family has its own.
func standInFor(ip netip.Addr) string {
	if ip.Is6() {
		return standInLink + "6"
	}
	return standInLink
}

// savedNodeIPs are the addresses of the last start, none when there was none.
func (c *Config) savedNodeIPs() []netip.Addr {
	data, err := os.ReadFile(c.nodeIPFile())
	if err != nil {
		return nil
	}
	var saved []netip.Addr
	for text := range strings.SplitSeq(strings.TrimSpace(string(data)), ",") {
		if ip, err := netip.ParseAddr(text); err == nil {
			saved = append(saved, ip)
		}
	}
	return saved
}

// saveNodeIPs keeps the addresses for a start without a network, which may
// follow a power cut.
func (c *Config) saveNodeIPs() error {
	text := savedText(c.nodeIPs())
	if have, err := os.ReadFile(c.nodeIPFile()); err == nil && string(have) == text {
		return nil
	}
	if err := join.ReplaceFile(c.nodeIPFile(), []byte(text)); err != nil {
		return fmt.Errorf("keep node addresses: %w", err)
	}
	return nil
}

// savedText is what savedNodeIPs reads.
func savedText(ips []netip.Addr) string {
	parts := make([]string, 0, len(ips))
	for _, ip := range ips {
		parts = append(parts, ip.String())
	}
	return strings.Join(parts, ",") + "\n"
}

// ErrAddressChanged means that the machine is reached at another address now.
var ErrAddressChanged = errors.New("the node's address has changed")

// holdAddress gives ip to a stand-in interface if no other has it, and takes it
// back once one does. It blocks until ctx ends, or returns [ErrAddressChanged]
// when the stand-in was in use and the default route came up with another
// address. ready is called once ip is there.
func holdAddress(ctx context.Context, ip netip.Addr, log *slog.Logger, ready func()) error {
	return holdWatching(ctx, ip, log, ready, watchAddresses)
}

// holdWatching is holdAddress that learns of changes from watch, whose channel is
// closed when the context ends or changes were lost.
func holdWatching(ctx context.Context, ip netip.Addr, log *slog.Logger, ready func(), watch func(context.Context) (<-chan struct{}, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	changed, err := watch(ctx)
	if err != nil {
		cancel()
		return err
	}
	defer func() {
		cancel()
		for range changed { // until it is closed
		}
	}()
	standing, err := standIn(ip)
	if err != nil {
		return err
	}
	if standing {
		log.Warn("no interface has the node's address, a stand-in has it until one does", "address", ip, "interface", standInFor(ip))
	}
	ready()
	for {
		open := true
		select {
		case <-ctx.Done():
			return nil
		case _, open = <-changed:
		}
		if !open { // what was missed is looked at below
			if !pause(ctx, watchRetry) {
				return nil
			}
			again, err := watch(ctx)
			if err != nil {
				return err
			}
			changed = again
		}
		if !standing {
			continue
		}
		if elsewhere, err := onOtherLink(ip); err != nil || !elsewhere {
			if now, ok := defaultRouteIP(ip.Is6()); ok && now != ip {
				return fmt.Errorf("from %s to %s: %w", ip, now, ErrAddressChanged)
			}
			continue
		}
		if err := removeStandIn(ip); err != nil {
			return err
		}
		standing = false
		log.Info("an interface has the node's address again", "address", ip)
	}
}

// watchRetry is the pause before changes are watched again after some were lost.
const watchRetry = time.Second

// watchAddresses returns a channel that has something when addresses or routes
// may have changed. It is closed when ctx ends, or when changes were lost: the
// kernel drops who does not keep up with many at once, or stood still meanwhile.
func watchAddresses(ctx context.Context) (<-chan struct{}, error) {
	ctx, stop := context.WithCancel(ctx)
	addrs, routes := make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	if err := errors.Join(netlink.AddrSubscribe(addrs, ctx.Done()), netlink.RouteSubscribe(routes, ctx.Done())); err != nil {
		stop()
		return nil, fmt.Errorf("watch addresses and routes: %w", err)
	}
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	var both sync.WaitGroup
	both.Go(func() {
		defer stop()
		for range addrs {
			poke()
		}
	})
	both.Go(func() {
		defer stop()
		for range routes {
			poke()
		}
	})
	go func() {
		both.Wait()
		close(changed)
	}()
	return changed, nil
}

// standIn makes the stand-in if it is needed, removes one that is not, and
// tells which it was.
func standIn(ip netip.Addr) (bool, error) {
	elsewhere, err := onOtherLink(ip)
	if err != nil {
		return false, err
	}
	if elsewhere {
		return false, removeStandIn(ip)
	}
	if hasAddress(ip) { // from an earlier start
		return true, nil
	}
	if err := removeStandIn(ip); err != nil { // it holds some older address
		return false, err
	}
	// A small kernel may lack dummy interfaces; a bridge without ports is as good.
	named := netlink.LinkAttrs{Name: standInFor(ip)}
	var link netlink.Link = &netlink.Dummy{LinkAttrs: named}
	err = netlink.LinkAdd(link)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		link = &netlink.Bridge{LinkAttrs: named}
		err = netlink.LinkAdd(link)
	}
	if err != nil {
		return false, fmt.Errorf("add stand-in interface: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return false, fmt.Errorf("give stand-in interface the address %s: %w", ip, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return false, fmt.Errorf("start stand-in interface: %w", err)
	}
	return true, nil
}

func removeStandIn(ip netip.Addr) error {
	link, err := netlink.LinkByName(standInFor(ip))
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove stand-in interface: %w", err)
	}
	return nil
}

// onOtherLink reports whether an interface other than the stand-in has ip.
func onOtherLink(ip netip.Addr) (bool, error) {
	links, err := net.Interfaces()
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		if link.Name == standInFor(ip) {
			continue
		}
		addrs, err := link.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == ip {
					return true, nil
				}
			}
		}
	}
	return false, nil
}
