package ebpf

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNode runs the calling test once more, in a process of its own in a network
// namespace, a mount namespace and a cgroup of its own, and there returns the
// configuration of a balancer. In the first process it returns false.
func inNode(t *testing.T) (Config, bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const inside = "MOOT_TEST_CGROUP"
	if os.Getenv(inside) == "" {
		root := "/sys/fs/cgroup/unified"
		if _, err := os.Stat(root); err != nil {
			root = "/sys/fs/cgroup"
		}
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			t.Skipf("no cgroup v2: %v", err)
		}
		group, err := os.MkdirTemp(root, "moot-test-") //nolint:usetesting // a cgroup, not a plain directory
		if err != nil {
			t.Skipf("make cgroup: %v", err)
		}
		dir, err := os.Open(group)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v") //nolint:gosec // this very binary
		cmd.Env = append(os.Environ(), inside+"="+group)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(dir.Fd()),
		}
		out, err := cmd.CombinedOutput()
		_ = dir.Close()
		if err := os.Remove(group); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("in the namespace: %v\n%s", err, out)
		}
		t.Logf("%s", out)
		return Config{}, false
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"10.0.0.1/32", "fd10::1/128", "10.42.0.2/32", "10.42.0.3/32", "fd42::2/128"} {
		addr, err := netlink.ParseAddr(own)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return Config{Cgroup: os.Getenv(inside), Pins: newPins(t).pins, Log: discard()}, true
}

func openNode(t *testing.T, cfg Config) *Balancer {
	t.Helper()
	b, err := Open(cfg)
	if err != nil {
		t.Fatalf("open: %+v", err)
	}
	if err := b.SetAddresses([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd10::1")}); err != nil {
		t.Fatal(err)
	}
	return b
}

// named serves its own address to each TCP connection and UDP packet.
func named(t *testing.T, addr string) Backend {
	t.Helper()
	l, err := net.Listen("tcp", addr+":0") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	at := l.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(at.Addr().String()))
			go func() { _, _ = c.Read(make([]byte, 1)); _ = c.Close() }()
		}
	}()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort([]byte(at.Addr().String()), from)
		}
	}()
	return Backend{Addr: at, Local: true}
}

func frontend(addr string, p Protocol) Frontend {
	return Frontend{Addr: netip.MustParseAddrPort(addr), Protocol: p}
}

func connect(t *testing.T, network, addr string) (net.Conn, string) {
	t.Helper()
	c, err := net.DialTimeout(network, addr, 20*time.Second) //nolint:noctx // a test
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, said(t, network, c)
}

func said(t *testing.T, network string, c net.Conn) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(network, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return string(buf[:n])
}

func TestSocketsReachServices(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	four, six := named(t, "10.42.0.2"), named(t, "[fd42::2]")
	want := map[Frontend]Service{}
	for _, p := range []Protocol{TCP, UDP} {
		for _, addr := range []string{"10.43.0.50:80", "0.0.0.0:30080"} {
			want[frontend(addr, p)] = Service{Backends: []Backend{four}}
		}
		for _, addr := range []string{"[fd43::50]:80", "[::]:30080"} {
			want[frontend(addr, p)] = Service{Backends: []Backend{six}}
		}
		want[frontend("10.43.0.51:80", p)] = Service{}
		want[frontend("10.43.0.52:80", p)] = Service{Drop: true}
	}
	if err := b.Resync(want); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "udp"} {
		for addr, who := range map[string]string{
			"10.43.0.50:80": "10.42.0.2", "[fd43::50]:80": "fd42::2",
			"10.0.0.1:30080": "10.42.0.2", "127.0.0.1:30080": "10.42.0.2", "[fd10::1]:30080": "fd42::2",
		} {
			c, got := connect(t, network, addr)
			if got != who {
				t.Errorf("%s %s: %s answered, want %s", network, addr, got, who)
			}
			sc, err := c.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var peer unix.Sockaddr
			if err := sc.Control(func(fd uintptr) { peer, err = unix.Getpeername(int(fd)) }); err != nil {
				t.Fatal(err)
			}
			if err != nil || portOf(peer) != netip.MustParseAddrPort(addr).Port() {
				t.Errorf("%s %s: peer %+v, %v, want the Service's", network, addr, peer, err)
			}
		}
		for addr, want := range map[string]error{"10.43.0.51:80": unix.ECONNREFUSED, "10.43.0.52:80": unix.ETIMEDOUT} {
			if _, err := net.Dial(network, addr); !errors.Is(err, want) { //nolint:noctx // a test
				t.Errorf("%s %s: %v, want %v", network, addr, err, want)
			}
		}
	}
	unconnected(t, "10.43.0.50:80", "udp4")
	unconnected(t, "10.43.0.50:80", "udp6")
	unconnected(t, "[fd43::50]:80", "udp6")
	mapped(t)
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins left: %v", err)
	}
}

func portOf(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

// unconnected sends from a socket that is connected to nobody.
func unconnected(t *testing.T, addr, network string) {
	t.Helper()
	local := net.UDPAddr{IP: net.IPv6unspecified}
	if network == "udp4" {
		local.IP = net.IPv4zero
	}
	if network == "udp6" && strings.HasPrefix(addr, "10.") {
		network = "udp" // a socket of both families
	}
	c, err := net.ListenUDP(network, &local)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	to := netip.MustParseAddrPort(addr)
	if _, err := c.WriteToUDPAddrPort([]byte("?"), to); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 64))
	if err != nil || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != to {
		t.Errorf("%s %s: answer from %s, %v", network, addr, from, err)
	}
}

// mapped connects an IPv6 socket to a Service's IPv4 address.
func mapped(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrInet6{Port: 80, Addr: netip.MustParseAddr("10.43.0.50").As16()}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatalf("connect to the mapped address: %v", err)
	}
	peer, err := unix.Getpeername(fd)
	if got, ok := peer.(*unix.SockaddrInet6); err != nil || !ok || got.Addr != to.Addr || got.Port != 80 {
		t.Errorf("peer of a mapped connection: %+v, %v", peer, err)
	}
}

func TestRestartsAndChurnFailNoConnect(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	many := []Backend{one, two} // more than lie in the frontend
	for range near {
		many = append(many, named(t, "10.42.0.2"))
	}
	f := frontend("10.43.0.50:80", TCP)
	if err := b.Resync(map[Frontend]Service{f: {Backends: []Backend{one, two}}}); err != nil {
		t.Fatal(err)
	}
	open, _ := connect(t, "tcp", "10.43.0.50:80")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	made := 0
	go func() {
		defer close(failed)
		for ctx.Err() == nil {
			c, err := net.Dial("tcp", "10.43.0.50:80") //nolint:noctx // a test
			if err != nil {
				failed <- err
				return
			}
			made++
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
	for i := range 200 {
		backends := [][]Backend{{one}, many, {two}, {one, two}, many[1:]}[i%5]
		if err := b.Apply(map[Frontend]Service{f: {Backends: backends}}, nil); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = openNode(t, cfg)
		}
	}
	cancel()
	for err := range failed {
		t.Errorf("a connect failed: %v", err)
	}
	t.Logf("%d connects, none failed", made)
	if err := open.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Write([]byte("x")); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	if n := count(t, b, "moot_slots"); n != len(many)-1 { // the last to be applied
		t.Errorf("%d slots left", n)
	}
	if err := b.Resync(nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"moot_slots", "moot_services", "moot_members", "moot_sources"} {
		if n := count(t, b, name); n != 0 {
			t.Errorf("%s: %d left", name, n)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, b *Balancer, name string) (n int) {
	t.Helper()
	var key any
	for {
		next, err := b.coll.Maps[name].NextKeyBytes(key)
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			return n
		}
		key = bytes.Clone(next)
		n++
	}
}

func TestAffinityOfSockets(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	f := frontend("10.43.0.50:80", TCP)
	set := func(backends ...Backend) {
		if err := b.Apply(map[Frontend]Service{f: {Backends: backends, Affinity: time.Minute}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set(one, two)
	_, first := connect(t, "tcp", "10.43.0.50:80")
	for range 30 {
		if _, got := connect(t, "tcp", "10.43.0.50:80"); got != first {
			t.Fatalf("%s, then %s", first, got)
		}
	}
	other := two
	if first == two.Addr.Addr().String() {
		other = one
	}
	set(other)
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got == first {
		t.Errorf("led to a backend that is gone")
	}
	// Once its time has run out each connect is free: so often the same by chance
	// would be one in 2^40.
	set(one, two)
	for _, free := range []bool{true, false} {
		got := map[string]int{}
		for range 40 {
			m := b.coll.Maps["moot_affinity"]
			var key affinityKey
			var last affinity
			if err := m.NextKey(nil, &key); err != nil {
				t.Fatal(err)
			}
			if err := m.Lookup(key, &last); err != nil {
				t.Fatal(err)
			}
			last.Seen = 0
			if !free {
				last.Seen = monotonic(t) + uint64(time.Minute) // by another CPU's clock
			}
			if err := m.Put(key, last); err != nil {
				t.Fatal(err)
			}
			_, who := connect(t, "tcp", "10.43.0.50:80")
			got[who]++
		}
		if (len(got) == 2) != free {
			t.Errorf("backends of a client, free %t: %v", free, got)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// TestLayouts compares the daemon's side of each map with the programs'.
func TestLayouts(t *testing.T) {
	spec, err := loadSock()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string][2]uintptr{
		"moot_services": {sizeOf[frontendKey](), sizeOf[frontendValue]()},
		"moot_slots":    {sizeOf[slotKey](), sizeOf[backend]()},
		"moot_tables":   {sizeOf[slotKey](), sizeOf[table]()},
		"moot_members":  {sizeOf[memberKey](), 1},
		"moot_affinity": {sizeOf[affinityKey](), sizeOf[affinity]()},
		"moot_origins":  {sizeOf[originKey](), sizeOf[origin]()},
		"moot_sources":  {sizeOf[sourceKey](), 1},
	} {
		m := spec.Maps[name]
		if uintptr(m.KeySize) != size[0] || uintptr(m.ValueSize) != size[1] {
			t.Errorf("%s: %d and %d bytes, here %v", name, m.KeySize, m.ValueSize, size)
		}
	}
}

func sizeOf[T any]() uintptr {
	var v T
	return unsafe.Sizeof(v)
}
