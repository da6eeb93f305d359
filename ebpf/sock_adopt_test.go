package ebpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Maps of another layout are made anew; until they are filled, the programs
// before serve from theirs.
func TestMapsOfAnotherLayoutAreReplacedWithoutAGap(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	f := frontend("10.43.0.50:80", TCP)
	if err := b.Resync(map[Frontend]Service{f: {Backends: []Backend{one}}}); err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(cfg.Pins, "moot_services")
	if err := errors.Join(b.Close(), os.Remove(pin)); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Pin(pin), other.Close()); err != nil {
		t.Fatal(err)
	}
	b = openNode(t, cfg)
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got != "10.42.0.2" {
		t.Errorf("before the maps are filled: %s", got)
	}
	if err := b.Resync(map[Frontend]Service{f: {Backends: []Backend{two}}}); err != nil {
		t.Fatal(err)
	}
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got != "10.42.0.3" {
		t.Errorf("after: %s", got)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

func TestSocketsInPodsAreDestroyed(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	dead := Backend{Addr: netip.MustParseAddrPort("10.42.0.9:53")}
	service := Service{Backends: []Backend{dead}}
	if err := b.Resync(map[Frontend]Service{
		frontend("10.43.0.50:53", UDP): service, frontend("0.0.0.0:30053", UDP): service,
	}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("/run/netns", 0o700); err != nil {
		t.Fatal(err)
	}
	pod := make(chan int)
	fail := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		fd, err := podSocket()
		fail <- err
		pod <- fd
	}()
	if err := <-fail; err != nil {
		t.Fatal(err)
	}
	fd := <-pod
	n, err := b.Disconnect(t.Context(), []Target{{dead.Addr, UDP}})
	if n != 1 || err != nil {
		t.Errorf("%d destroyed, %v, want 1", n, err)
	}
	if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the pod reads %v", err)
	}
	if err := errors.Join(unix.Close(fd), b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// podSocket makes a network namespace as a pod has one, and in it a socket to the
// Service. Loopback there is the pod's own and leads to no NodePort.
func podSocket() (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return 0, err
	}
	if err := os.WriteFile("/run/netns/pod", nil, 0o600); err != nil {
		return 0, err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", "/run/netns/pod", "", unix.MS_BIND, ""); err != nil {
		return 0, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, err
	}
	addr, err := netlink.ParseAddr("10.42.0.9/32")
	if err != nil {
		return 0, err
	}
	if err := errors.Join(netlink.AddrAdd(lo, addr), netlink.LinkSetUp(lo)); err != nil {
		return 0, err
	}
	var fds [2]int
	for i, to := range []string{"127.0.0.1:30053", "10.43.0.50:53"} {
		at := netip.MustParseAddrPort(to)
		fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Connect(fds[i], &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
			return 0, err
		}
	}
	return fds[1], nil
}
