package main

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	nodeName = "n1"
	nodeAddr = "10.0.0.1"
	podCIDR  = "10.42.0.0/24"
	gateway  = "10.42.0.1"
	livePort = 8080 // the server pod listens there
	deadPort = 8081 // and not there
)

// podAddrs are the server pod's: as two pods to the proxy, one to the kernel.
var podAddrs = [...][4]byte{{10, 42, 0, 2}, {10, 42, 0, 3}}

// network is what a node and its neighbours have; this process is in the node.
type network struct {
	client int // network namespace of the pod that connects
	server int // and of the one that listens
}

// buildNetwork makes a node with an uplink, and pods each behind a device of its
// own as the daemon's network plugin does it.
func buildNetwork() (*network, error) {
	var n network
	outside, err := newNamespace()
	if err != nil {
		return nil, err
	}
	for _, ns := range []*int{&n.client, &n.server} {
		if *ns, err = newNamespace(); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return nil, err
	}
	if err := configure("lo", "127.0.0.1/8", gateway+"/32"); err != nil {
		return nil, err
	}
	if err := veth("eth0", outside, "10.0.0.254/24"); err != nil {
		return nil, err
	}
	if err := configure("eth0", nodeAddr+"/24"); err != nil {
		return nil, err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.0.0.254")}); err != nil {
		return nil, fmt.Errorf("add default route: %w", err)
	}
	if err := pod("client", n.client, "10.42.0.10"); err != nil {
		return nil, err
	}
	return &n, pod("server", n.server, ip(podAddrs[0]).String(), ip(podAddrs[1]).String())
}

func ip(a [4]byte) net.IP { return net.IPv4(a[0], a[1], a[2], a[3]) }

// pod connects a namespace as a pod's is.
func pod(device string, ns int, addrs ...string) error {
	var own []string
	for _, a := range addrs {
		own = append(own, a+"/32")
	}
	if err := veth(device, ns, own...); err != nil {
		return err
	}
	if err := configure(device); err != nil {
		return err
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range own {
		to, err := netlink.ParseIPNet(a)
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK, Src: net.ParseIP(gateway)}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route to %s: %w", a, err)
		}
	}
	return within(ns, func() error {
		if err := configure("lo", "127.0.0.1/8"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway), Flags: int(netlink.FLAG_ONLINK)}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add default route of %s: %w", device, err)
		}
		return nil
	})
}

// veth makes a device whose other end is eth0 in ns, with these addresses.
func veth(name string, ns int, addrs ...string) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add device %s: %w", name, err)
	}
	return within(ns, func() error { return configure("eth0", addrs...) })
}

func configure(device string, addrs ...string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		// The kernel gives the loopback device its own.
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", text, device, err)
		}
	}
	return nil
}

// newNamespace makes a network namespace, which lives while this process does.
func newNamespace() (fd int, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// within runs f in a network namespace; 0 is this process's own.
func within(ns int, f func() error) error {
	return onThread(func() error {
		if ns != 0 {
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace: %w", err)
			}
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks
		done <- f()
	}()
	return <-done
}
