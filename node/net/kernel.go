package net

import (
	"errors"
	"fmt"
	stdnet "net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes in the kernel's table ("proto 77" in ip
// route): whatever else is there is left alone.
const routeProtocol netlink.RouteProtocol = 77

// setGateway gives the loopback interface the gateway addresses of the node's
// pod networks, and takes away those of networks it no longer has.
func setGateway(cluster []netip.Prefix, want []netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	have, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list loopback addresses: %w", err)
	}
	missing := map[netip.Addr]bool{}
	for _, a := range want {
		missing[a] = true
	}
	for _, a := range have {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		switch {
		case !ok:
		case missing[ip]:
			delete(missing, ip)
		case slices.ContainsFunc(cluster, func(p netip.Prefix) bool { return p.Contains(ip) }):
			if err := netlink.AddrDel(lo, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
				return fmt.Errorf("remove old gateway address %s: %w", ip, err)
			}
		}
	}
	for ip := range missing {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen()))}
		if ip.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(lo, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("add gateway address %s: %w", ip, err)
		}
	}
	if lo.Attrs().Flags&stdnet.FlagUp == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set loopback interface up: %w", err)
		}
	}
	return nil
}

// ourRoutes reads back the routes that we set. device is the index of the
// overlay's device, 0 when there is none.
func ourRoutes(device int) (map[netip.Prefix]hop, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	have := map[netip.Prefix]hop{}
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		cidr, ok := prefixOf(r.Dst)
		if !ok {
			continue
		}
		gw, _ := netip.AddrFromSlice(r.Gw)
		src, _ := netip.AddrFromSlice(r.Src)
		have[cidr] = hop{via: gw.Unmap(), src: src.Unmap(), overlay: device != 0 && r.LinkIndex == device}
	}
	return have, nil
}

// applyRoutes changes the kernel's table. It goes on past a route the kernel
// refuses, so that one unreachable node does not cut off the others.
func applyRoutes(set map[netip.Prefix]hop, remove []netip.Prefix, device int) error {
	var errs []error
	for _, cidr := range remove {
		err := netlink.RouteDel(&netlink.Route{Dst: ipNet(cidr), Protocol: routeProtocol})
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", cidr, err))
		}
	}
	for cidr, next := range set {
		route := &netlink.Route{Dst: ipNet(cidr), Gw: next.via.AsSlice(), Protocol: routeProtocol}
		if next.overlay {
			route.LinkIndex, route.Flags = device, int(netlink.FLAG_ONLINK)
		}
		if next.src.IsValid() {
			route.Src = next.src.AsSlice()
		}
		if err := netlink.RouteReplace(route); err != nil {
			errs = append(errs, fmt.Errorf("set route to %s by %s: %w", cidr, next.via, err))
		}
	}
	return errors.Join(errs...)
}

// mtuOf is the MTU of the interface that has the address.
func mtuOf(ip netip.Addr) (int, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if have, ok := netip.AddrFromSlice(a.IP); ok && have.Unmap() == ip.Unmap() {
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if err != nil {
				return 0, fmt.Errorf("find interface of %s: %w", ip, err)
			}
			return link.Attrs().MTU, nil
		}
	}
	return 0, fmt.Errorf("no interface has the address %s", ip)
}

func ipNet(p netip.Prefix) *stdnet.IPNet {
	return &stdnet.IPNet{IP: p.Addr().AsSlice(), Mask: stdnet.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *stdnet.IPNet) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(ip.Unmap(), ones), true
}
