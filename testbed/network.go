package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The bridge namespace answers at .1 of the subnet, registries have .2 to
// .9, node nX has .10+X, machines that are no nodes have .240 to .247.
const (
	bridgeName    = "br0"
	nodeLink      = "eth0"
	firstRegistry = 2
	maxRegistries = 8
	firstNode     = 11
	maxNodes      = 200
	firstMachine  = 240
	maxMachines   = 8
)

func host(subnet netip.Prefix, n int) netip.Addr {
	a := subnet.Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

func (c *Cluster) bridgeFile() string { return c.path("bridge.netns") }

// inThread runs fn on an operating system thread of its own, which ends with
// it: fn may change the thread's namespaces and cgroups. That is never the
// main thread, which cannot end before the process and whose view is what
// /proc/self shows.
func inThread[T any](fn func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Sit on the main thread while another one does it.
			defer runtime.UnlockOSThread()
			v, err := inThread(fn)
			done <- result{v, err}
			return
		}
		v, err := fn() // never unlocked: the thread is not reused
		done <- result{v, err}
	}()
	r := <-done
	return r.v, r.err
}

// createBridge makes the network namespace of the bridge, held by a bind
// mount, and the bridge in it.
func (c *Cluster) createBridge(subnet netip.Prefix) error {
	file := c.bridgeFile()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("create bridge: %w", err)
	}
	_, err := inThread(func() (struct{}, error) {
		var none struct{}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return none, err
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, file, "", unix.MS_BIND, ""); err != nil {
			return none, fmt.Errorf("hold namespace: %w", err)
		}
		// Packets to nowhere are answered as unreachable, at once, instead
		// of vanishing.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			return none, err
		}
		return none, setupBridge(subnet)
	})
	if err != nil {
		return fmt.Errorf("create bridge: %w", err)
	}
	return nil
}

func setupBridge(subnet netip.Prefix) error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	snoop := false
	br := &netlink.Bridge{LinkAttrs: named(bridgeName), MulticastSnooping: &snoop}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add %s: %w", bridgeName, err)
	}
	if err := netlink.AddrAdd(br, address(host(subnet, 1), subnet)); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	return netlink.LinkSetUp(br)
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return netlink.LinkSetUp(l)
}

func address(a netip.Addr, subnet netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)}}
}

// removeBridge lets go of the bridge's namespace; the kernel removes it with
// all that is in it when the last process has left.
func (c *Cluster) removeBridge() error {
	file := c.bridgeFile()
	for {
		err := unix.Unmount(file, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not mounted (any more)
		}
		if err != nil {
			return fmt.Errorf("remove bridge: %w", err)
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove bridge: %w", err)
	}
	return nil
}

// bridge opens the bridge's namespace for netlink.
func (c *Cluster) bridge() (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(c.bridgeFile())
	if err != nil {
		return nil, fmt.Errorf("open bridge: %w", err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("open bridge: %w", err)
	}
	return h, nil
}

// plug connects the network namespace of a process to the bridge: port is
// the name on the bridge's side, eth0 the one inside.
func (c *Cluster) plug(port string, addr netip.Addr, subnet netip.Prefix, pid int, link linkState) error {
	if err := c.unplug(port); err != nil {
		return err
	}
	br, err := c.bridge()
	if err != nil {
		return err
	}
	defer br.Close()
	master, err := br.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("plug %s: %w", port, err)
	}
	a := addr.As4()
	attrs := named(port)
	attrs.MasterIndex = master.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         nodeLink,
		PeerHardwareAddr: net.HardwareAddr{0x02, 0x6d, a[0], a[1], a[2], a[3]}, // the same over every boot
		PeerNamespace:    netlink.NsPid(pid),
	}
	if err := br.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s: %w", port, err)
	}
	if link == linkUpState {
		if err := br.LinkSetUp(veth); err != nil {
			return fmt.Errorf("plug %s: %w", port, err)
		}
	}
	if err := configureLink(addr, subnet, pid, link); err != nil {
		return fmt.Errorf("plug %s: %w", port, err)
	}
	return nil
}

// configureLink sets up the links inside, as far as there is a network. The
// default route leads to the bridge's namespace, where it ends. It may be
// called again when that has changed.
func configureLink(addr netip.Addr, subnet netip.Prefix, pid int, link linkState) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName(nodeLink)
	if err != nil {
		return err
	}
	if err := errors.Join(h.LinkSetUp(lo), h.LinkSetUp(eth)); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: host(subnet, 1).AsSlice()}
	switch link {
	case linkBare:
		err := h.AddrDel(eth, address(addr, subnet)) // its routes go with it
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	case linkUnplugged:
		return h.AddrReplace(eth, address(addr, subnet))
	}
	return errors.Join(h.AddrReplace(eth, address(addr, subnet)), h.RouteReplace(route))
}

// unplug removes a port of the bridge, and so the link inside, if it is
// there.
func (c *Cluster) unplug(port string) error {
	br, err := c.bridge()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer br.Close()
	l, err := br.LinkByName(port)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unplug %s: %w", port, err)
	}
	// Down first: what the dying node still sends goes nowhere.
	if err := br.LinkSetDown(l); err != nil {
		return fmt.Errorf("unplug %s: %w", port, err)
	}
	if err := br.LinkDel(l); err != nil {
		return fmt.Errorf("unplug %s: %w", port, err)
	}
	return nil
}

// inNetns runs fn on a thread inside the network namespace at path.
func inNetns[T any](path string, fn func() (T, error)) (T, error) {
	return inThread(func() (T, error) {
		var none T
		ns, err := os.Open(path)
		if err != nil {
			return none, fmt.Errorf("enter network namespace: %w", err)
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return none, fmt.Errorf("enter network namespace %s: %w", filepath.Base(path), err)
		}
		return fn()
	})
}
