package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// connect makes the pair and routes the pod's addresses over it. It fills in
// the interfaces, routes and interface indexes of the result.
//
// The pod has each address with a full mask and a default route through the
// gateway; the host end has the gateway's address, which makes it the source
// of what the node itself sends to the pod (probes), and one route per pod.
func (n *network) connect(netns ns.NetNS, containerID, ifName string, result *current.Result) error {
	var host, pod net.Interface
	err := netns.Do(func(hostNS ns.NetNS) error {
		var err error
		if host, pod, err = ip.SetupVethWithName(ifName, hostName(containerID, ifName), n.mtu, "", hostNS); err != nil {
			return fmt.Errorf("make veth pair: %w", err)
		}
		return configurePod(ifName, result.IPs)
	})
	if err != nil {
		return err
	}
	if err := configureHost(host, result.IPs); err != nil {
		return err
	}
	result.Interfaces = []*current.Interface{
		{Name: host.Name, Mac: host.HardwareAddr.String()},
		{Name: ifName, Mac: pod.HardwareAddr.String(), Sandbox: netns.Path()},
	}
	for _, c := range result.IPs {
		c.Interface = new(1)
	}
	return nil
}

// hostName names the host's end of a pair, so that it is found by the container
// alone. The prefix is what NetworkManager and systemd leave alone, the length
// what the kernel takes.
func hostName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + " " + ifName))
	return "veth" + hex.EncodeToString(sum[:])[:11]
}

func configurePod(ifName string, ips []*current.IPConfig) error {
	link, err := netlink.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", ifName, err)
	}
	for _, c := range ips {
		if err := addAddress(link, c.Address); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %s up: %w", ifName, err)
	}
	for _, c := range ips {
		gateway := hostNet(c.Gateway)
		if err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: gateway, Scope: netlink.SCOPE_LINK,
		}); err != nil {
			return fmt.Errorf("add route to gateway %s: %w", c.Gateway, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: anyNet(c.Gateway), Gw: c.Gateway,
		}); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
	}
	return nil
}

func configureHost(host net.Interface, ips []*current.IPConfig) error {
	link, err := netlink.LinkByName(host.Name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", host.Name, err)
	}
	// An address that was set, though it is the one it had, is one that udev
	// leaves alone: the pod may know it by now.
	if err := netlink.LinkSetHardwareAddr(link, host.HardwareAddr); err != nil {
		return fmt.Errorf("fix hardware address of %s: %w", host.Name, err)
	}
	for _, c := range ips {
		if err := addAddress(link, *hostNet(c.Gateway)); err != nil {
			return err
		}
		// Replace, not add: a route left by a pod that died badly must not
		// swallow the traffic of the one that has its address now.
		if err := netlink.RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: hostNet(c.Address.IP), Scope: routeScope(c.Address.IP),
		}); err != nil {
			return fmt.Errorf("add route to %s: %w", c.Address.IP, err)
		}
	}
	return nil
}

// addAddress skips duplicate address detection: the range is the node's own.
func addAddress(link netlink.Link, addr net.IPNet) error {
	a := &netlink.Addr{IPNet: &addr}
	if addr.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
		if err := enableIPv6(link.Attrs().Name); err != nil {
			return err
		}
	}
	if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", &addr, link.Attrs().Name, err)
	}
	return nil
}

// routeLoopback lets packets between 127.0.0.1 and the pod pass the interface,
// for host ports.
func routeLoopback(ifName string) error {
	path := "/proc/sys/net/ipv4/conf/" + ifName + "/route_localnet"
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("route loopback addresses on %s: %w", ifName, err)
	}
	return nil
}

func enableIPv6(ifName string) error {
	path := "/proc/sys/net/ipv6/conf/" + ifName + "/disable_ipv6"
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		return fmt.Errorf("enable IPv6 on %s: %w", ifName, err)
	}
	return nil
}

func routeScope(addr net.IP) netlink.Scope {
	if addr.To4() != nil {
		return netlink.SCOPE_LINK
	}
	return netlink.SCOPE_UNIVERSE
}

// hostNet is the network of one address.
func hostNet(addr net.IP) *net.IPNet {
	if v4 := addr.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: addr, Mask: net.CIDRMask(128, 128)}
}

// anyNet is the default destination of the address's family.
func anyNet(addr net.IP) *net.IPNet {
	if addr.To4() != nil {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}
