package testbed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Machine is a computer on the nodes' network that is no node: the place of a
// client from outside. It has a network and processes of its own, the files of
// this machine, and no way but to its neighbours and by [Machine.Route].
type Machine struct {
	Name string
	Addr netip.Addr

	process process
	path    string // to look for commands in
}

// Machine returns the machine of that name, which it makes if it is not there.
// It goes with the cluster.
func (c *Cluster) Machine(_ context.Context, name string) (*Machine, error) {
	var out *Machine
	err := c.locked(func(s *state) error {
		for _, m := range s.Machines {
			if m.Name != name {
				continue
			}
			if !m.Process.alive() {
				return fmt.Errorf("machine %s has died", name)
			}
			out = s.machine(m)
			return nil
		}
		if len(s.Machines) >= maxMachines {
			return fmt.Errorf("make machine %s: there are %d already", name, len(s.Machines))
		}
		m := &machineState{Name: name, Addr: host(s.Subnet, firstMachine+len(s.Machines))}
		if err := c.startMachine(s, m); err != nil {
			return fmt.Errorf("make machine %s: %w", name, err)
		}
		out = s.machine(m)
		return nil
	})
	return out, err
}

func (s *state) machine(m *machineState) *Machine {
	return &Machine{Name: m.Name, Addr: m.Addr, process: m.Process, path: s.Bin + ":" + machinePath}
}

// startMachine starts process 1 of the machine, which ends by itself unless it
// is told that it is on record.
func (c *Cluster) startMachine(s *state, m *machineState) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	pid, err := syscall.ForkExec(cmp.Or(c.cfg.Init, "/proc/self/exe"), []string{machineName}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + machinePath, "GOMAXPROCS=1"},
		Files: []uintptr{r.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID},
	})
	if err != nil {
		return err
	}
	if m.Process, err = identify(pid); err != nil {
		return err
	}
	s.Machines = append(s.Machines, m)
	if err := c.save(s); err != nil {
		return err
	}
	err = c.plug(fmt.Sprintf("m%d", len(s.Machines)), m.Addr, s.Subnet, pid, linkUpState)
	if err == nil {
		_, err = w.WriteString("on")
	}
	if err != nil {
		s.Machines = slices.Delete(s.Machines, len(s.Machines)-1, len(s.Machines))
		err = errors.Join(err, m.Process.killAndWait(context.Background(), nil), c.save(s))
	}
	return err
}

// runMachine is process 1 of a machine: it lets the kernel reap orphans, and
// takes all others with it when it is killed.
func runMachine() error {
	signal.Ignore(unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	if n, err := os.Stdin.Read(make([]byte, 2)); n == 0 {
		return err
	}
	for {
		_ = unix.Pause()
	}
}

// Exec runs a command on the machine, as [Cluster.Exec] does on a node.
func (m *Machine) Exec(ctx context.Context, cmd Command) (int, error) {
	pidfd, err := m.process.open()
	if errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("machine %s is gone", m.Name)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = pidfd.Close() }()
	return inThread(func() (int, error) {
		if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNET|unix.CLONE_NEWPID); err != nil {
			return 0, fmt.Errorf("enter machine %s: %w", m.Name, err)
		}
		return run(ctx, cmd, m.path, []string{"PATH=" + m.path, "HOME=/root", "LANG=C.UTF-8"}, nil)
	})
}

// Dial connects from the machine. The address is literal, no name.
func (m *Machine) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !m.process.alive() {
		return nil, fmt.Errorf("machine %s is gone", m.Name)
	}
	return inNetns(fmt.Sprintf("/proc/%d/ns/net", m.process.PID), func() (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	})
}

// Route leads what the machine sends to a range of addresses by way of a
// neighbour, in place of whatever led there before.
func (m *Machine) Route(to netip.Prefix, via netip.Addr) error {
	if !m.process.alive() {
		return fmt.Errorf("machine %s is gone", m.Name)
	}
	ns, err := netns.GetFromPid(m.process.PID)
	if err != nil {
		return fmt.Errorf("route %s on %s: %w", to, m.Name, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("route %s on %s: %w", to, m.Name, err)
	}
	defer h.Close()
	dst := &net.IPNet{IP: to.Masked().Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
	if err := h.RouteReplace(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s by %s on %s: %w", to, via, m.Name, err)
	}
	return nil
}
