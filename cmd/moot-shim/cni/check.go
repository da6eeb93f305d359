package cni

import (
	"errors"
	"fmt"
	"net"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/mootkube/moot/node/net/host"
)

// checkPod looks at the pod's end, in its namespace.
func checkPod(ifName string, want []*current.IPConfig) error {
	link, err := netlink.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", ifName, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("interface %s is down", ifName)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", ifName, err)
	}
	for _, w := range want {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(w.Address.IP) }) {
			return fmt.Errorf("interface %s lacks address %s", ifName, w.Address.IP)
		}
		routes, err := netlink.RouteList(link, familyNumber(w.Address.IP))
		if err != nil {
			return fmt.Errorf("list routes of %s: %w", ifName, err)
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.Equal(w.Gateway) }) {
			return fmt.Errorf("interface %s has no route through %s", ifName, w.Gateway)
		}
	}
	return nil
}

// checkHost looks at the host's side of a sandbox.
func (n *network) checkHost(containerID string, result *current.Result) error {
	if len(result.Interfaces) == 0 {
		return errors.New("check network: the previous result names no interface")
	}
	name := result.Interfaces[0].Name
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	for _, c := range result.IPs {
		routes, err := netlink.RouteGet(c.Address.IP)
		if err != nil {
			return fmt.Errorf("find route to %s: %w", c.Address.IP, err)
		}
		if len(routes) == 0 || routes[0].LinkIndex != link.Attrs().Index {
			return fmt.Errorf("the route to %s is not by interface %s", c.Address.IP, name)
		}
	}
	if n.masquerade {
		if there, err := host.Masquerades(n.subnets); err != nil || !there {
			return errors.Join(errors.New("pods' packets are not masqueraded"), err)
		}
	}
	fw, err := newFirewall()
	if err != nil {
		return err
	}
	return fw.checkPorts(containerID, result.IPs, n.ports)
}

// checkPorts counts the rules of the container's host ports.
func (fw *firewall) checkPorts(containerID string, ips []*current.IPConfig, ports []PortMapping) error {
	for _, c := range ips {
		f, want := fw.of(c.Address.IP), 0
		for _, p := range ports {
			if fw.maps(f, p) {
				want++
			}
		}
		for _, chain := range []*nftables.Chain{f.inbound, f.local} {
			rules, err := fw.rules(chain)
			if err != nil {
				return err
			}
			have := 0
			for _, r := range rules {
				if comment(r) == containerID {
					have++
				}
			}
			if have != want {
				return fmt.Errorf("chain %s has %d rules of this container, want %d", chain.Name, have, want)
			}
		}
	}
	return nil
}

func familyNumber(addr net.IP) int {
	if addr.To4() != nil {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
