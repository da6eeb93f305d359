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
	"syscall"

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
	addrs, routes, done := make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64), make(chan struct{})
	defer close(done)
	if err := errors.Join(netlink.AddrSubscribe(addrs, done), netlink.RouteSubscribe(routes, done)); err != nil {
		return fmt.Errorf("watch addresses and routes: %w", err)
	}
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
		case _, open = <-addrs:
		case _, open = <-routes:
		}
		if !open {
			return errors.New("watch addresses and routes: the kernel ended it")
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
