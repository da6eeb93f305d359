package net

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	stdnet "net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OverlayLink is the name of the overlay's device.
const OverlayLink = "moot-vxlan"

// overlayVNI is the overlay's network identifier. It need not differ from
// another cluster's: what does not come from a member is dropped.
const overlayVNI = 7443

// overlay is what the overlay's device should be.
type overlay struct {
	local    netip.Addr // of the node, outside
	port     int        // UDP
	mtu      int
	gateways []netip.Addr // of the node's pod networks
}

// sync makes the device and its neighbours as wanted, and returns the device's
// index. It starts over when the device is not what it should be: routes
// through it go with it and are set again by who calls.
func (o overlay) sync(tunnels map[netip.Addr]tunnel) (int, error) {
	link, err := o.ensure()
	if err != nil {
		return 0, err
	}
	index := link.Attrs().Index
	return index, errors.Join(syncFDB(index, tunnels), syncNeighbours(index, tunnels))
}

func (o overlay) ensure() (netlink.Link, error) {
	mac := hardware(overlayMAC(o.local))
	have, err := overlayLink()
	if err != nil {
		return nil, err
	}
	if have != nil && !o.is(have, mac) {
		if err := removeOverlay(); err != nil {
			return nil, err
		}
		have = nil
	}
	if have == nil {
		// Nothing is learned from packets: who is where follows from the Nodes.
		link := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: OverlayLink, HardwareAddr: mac, MTU: o.mtu},
			VxlanId:   overlayVNI, SrcAddr: o.local.AsSlice(), Port: o.port, Learning: false,
		}
		if err := netlink.LinkAdd(link); err != nil {
			return nil, fmt.Errorf("add overlay device: %w", err)
		}
		if have, err = overlayLink(); err != nil || have == nil {
			return nil, errors.Join(fmt.Errorf("find overlay device %s", OverlayLink), err)
		}
	}
	if have.Attrs().MTU != o.mtu {
		if err := netlink.LinkSetMTU(have, o.mtu); err != nil {
			return nil, fmt.Errorf("set MTU of overlay device to %d: %w", o.mtu, err)
		}
	}
	// Two nodes may see the way between them differently while one learns that
	// the other moved: an answer may come in here that left by a link.
	if err := setLooseFilter(); err != nil {
		return nil, err
	}
	if err := o.setAddresses(have); err != nil {
		return nil, err
	}
	if have.Attrs().Flags&stdnet.FlagUp == 0 {
		if err := netlink.LinkSetUp(have); err != nil {
			return nil, fmt.Errorf("set overlay device up: %w", err)
		}
	}
	return have, nil
}

func (o overlay) is(link netlink.Link, mac stdnet.HardwareAddr) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.VxlanId == overlayVNI && v.Port == o.port && !v.Learning &&
		v.SrcAddr.Equal(o.local.AsSlice()) && bytes.Equal(v.HardwareAddr, mac)
}

func setLooseFilter() error {
	path := "/proc/sys/net/ipv4/conf/" + OverlayLink + "/rp_filter"
	if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set source filter of overlay device: %w", err)
	}
	return nil
}

// setAddresses gives the device the gateways' addresses, and no others. On one
// without an address the kernel's filter of sources is strict, however it is set,
// and what is sent on by it for clients of Services would have no source that
// leads back to it.
func (o overlay) setAddresses(link netlink.Link) error {
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of overlay device: %w", err)
	}
	held := map[netip.Addr]bool{}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		held[ip.Unmap()] = true
	}
	for _, ip := range o.gateways {
		if held[ip] {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen()))}
		if ip.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("add address %s to overlay device: %w", ip, err)
		}
	}
	for _, a := range have { // after the new ones: with its last a device loses its routes
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if !ok || ip.IsLinkLocalUnicast() || slices.Contains(o.gateways, ip) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("remove old address %s of overlay device: %w", ip, err)
		}
	}
	return nil
}

// overlayLink returns nil when there is no device.
func overlayLink() (netlink.Link, error) {
	link, err := netlink.LinkByName(OverlayLink)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find overlay device: %w", err)
	}
	return link, nil
}

// removeOverlay takes the device away, with its routes, neighbours and
// forwarding entries.
func removeOverlay() error {
	link, err := overlayLink()
	if err != nil || link == nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove overlay device: %w", err)
	}
	return nil
}

// syncFDB says which node has which hardware address.
func syncFDB(index int, tunnels map[netip.Addr]tunnel) error {
	have, err := netlink.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list overlay forwarding: %w", err)
	}
	missing := maps.Clone(tunnels)
	var errs []error
	for _, n := range have {
		end, _ := netip.AddrFromSlice(n.IP)
		end = end.Unmap()
		if t, ok := missing[end]; ok && bytes.Equal(n.HardwareAddr, t.mac[:]) && n.State&netlink.NUD_PERMANENT != 0 {
			delete(missing, end)
			continue
		}
		n.Family, n.Flags, n.LinkIndex = unix.AF_BRIDGE, netlink.NTF_SELF, index
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("remove overlay forwarding to %s: %w", end, err))
		}
	}
	for end, t := range missing {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: end.AsSlice(), HardwareAddr: hardware(t.mac),
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("set overlay forwarding to %s: %w", end, err))
		}
	}
	return errors.Join(errs...)
}

// syncNeighbours says which hardware address each next hop has.
func syncNeighbours(index int, tunnels map[netip.Addr]tunnel) error {
	missing := map[netip.Addr][6]byte{}
	for _, t := range tunnels {
		for _, via := range t.hops {
			missing[via] = t.mac
		}
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("list overlay neighbours: %w", err)
		}
		for _, n := range have {
			via, _ := netip.AddrFromSlice(n.IP)
			via = via.Unmap()
			if mac, ok := missing[via]; ok && bytes.Equal(n.HardwareAddr, mac[:]) && n.State&netlink.NUD_PERMANENT != 0 {
				delete(missing, via)
				continue
			}
			if n.State&netlink.NUD_PERMANENT == 0 || missing[via] != [6]byte{} || n.State&netlink.NUD_NOARP != 0 {
				continue // replaced below, or the kernel's own
			}
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, fmt.Errorf("remove overlay neighbour %s: %w", via, err))
			}
		}
	}
	for via, mac := range missing {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, IP: via.AsSlice(), HardwareAddr: hardware(mac),
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("set overlay neighbour %s: %w", via, err))
		}
	}
	return errors.Join(errs...)
}

// wayTo asks the kernel how packets get to an address. known is false while
// there is no way at all.
func wayTo(ip netip.Addr) (w way, known bool) {
	routes, err := netlink.RouteGet(ip.AsSlice())
	if err != nil || len(routes) == 0 {
		return wayDirect, false
	}
	r := routes[0]
	if r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0 {
		return wayRouted, true
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return wayDirect, false
	}
	// A tunnel of somebody else's, WireGuard for one, takes only the addresses
	// that it was told of.
	if a := link.Attrs(); !slices.Contains([]string{"ether", "loopback"}, a.EncapType) {
		return wayRouted, true
	}
	return wayDirect, true
}
