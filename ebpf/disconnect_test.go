package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bothWays runs the test in the way that the kernel has, and with sock_diag.
func bothWays(t *testing.T, f func(t *testing.T, cfg Config)) {
	for _, no := range []bool{false, true} {
		t.Run(map[bool]string{false: "chosen", true: "sock_diag"}[no], func(t *testing.T) {
			cfg, in := inNode(t)
			if !in {
				return
			}
			cfg.NoSockDestroy = no
			f(t, cfg)
		})
	}
}

func TestDeadBackendsSocketsAreDestroyed(t *testing.T) { bothWays(t, deadBackends) }

func deadBackends(t *testing.T, cfg Config) {
	b := openNode(t, cfg)
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	want := map[Frontend]Service{}
	for _, p := range []Protocol{TCP, UDP} {
		want[frontend("10.43.0.50:80", p)] = Service{Backends: []Backend{one}}
		want[frontend("10.43.0.51:80", p)] = Service{Backends: []Backend{two}}
	}
	if err := b.Resync(want); err != nil {
		t.Fatal(err)
	}
	for network, p := range map[string]Protocol{"tcp": TCP, "udp": UDP} {
		dead, _ := connect(t, network, "10.43.0.50:80")
		other, _ := connect(t, network, "10.43.0.51:80")
		direct, _ := connect(t, network, one.Addr.String())
		n, err := b.Disconnect(t.Context(), []Target{{Addr: one.Addr, Protocol: p}})
		if n != 1 || err != nil {
			t.Errorf("%s: %d destroyed, %v, want 1", network, n, err)
		}
		if _, err := dead.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: the socket to the dead backend reads %v", network, err)
		}
		for what, c := range map[string]net.Conn{"another backend": other, "the address itself": direct} {
			if _, err := c.Write([]byte("x")); err != nil {
				t.Errorf("%s: the socket to %s: %v", network, what, err)
			}
		}
	}
	can := probeKfunc("bpf_sock_destroy")
	if want := can == nil && !cfg.NoSockDestroy; (b.iterators != nil) != want {
		t.Errorf("destroyed by bpf_sock_destroy: %t, want %t: %v", !want, want, can)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyOpeningConnectionsAreEnded(t *testing.T) { bothWays(t, openingConnections) }

// openingConnections ends what waits for a backend that says nothing, and leaves
// what is open, or asked for the backend itself.
func openingConnections(t *testing.T, cfg Config) {
	b := openNode(t, cfg)
	silence(t)
	const silent, service = "10.66.0.2:80", "10.43.0.66:80"
	answering := named(t, "10.42.0.2")
	if err := b.Resync(map[Frontend]Service{
		frontend(service, TCP):         {Backends: []Backend{{Addr: netip.MustParseAddrPort(silent)}}},
		frontend("10.43.0.50:80", TCP): {Backends: []Backend{answering}},
		frontend("10.43.0.50:80", UDP): {Backends: []Backend{answering}},
	}); err != nil {
		t.Fatal(err)
	}
	opening, direct := begin(t, service), begin(t, silent)
	open, _ := connect(t, "tcp", "10.43.0.50:80")
	datagrams, _ := connect(t, "udp", "10.43.0.50:80")
	n, err := b.Disconnect(t.Context(), []Target{
		{Addr: netip.MustParseAddrPort(silent), Protocol: TCP, Opening: true},
		{Addr: answering.Addr, Protocol: TCP, Opening: true},
		{Addr: answering.Addr, Protocol: UDP, Opening: true},
	})
	if n != 1 || err != nil {
		t.Errorf("%d destroyed, %v, want 1", n, err)
	}
	for what, c := range map[string]struct {
		fd   int
		want unix.Errno
	}{"to the Service": {opening, unix.ECONNABORTED}, "to the backend itself": {direct, 0}} {
		if got, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || unix.Errno(got) != c.want {
			t.Errorf("the connection opening %s: %v, %v; want %v", what, unix.Errno(got), err, c.want)
		}
	}
	if _, err := datagrams.Write([]byte("x")); err != nil {
		t.Errorf("UDP to a suspect: %v", err)
	}
	// Dead after all, whatever else was asked for at the same time: what was
	// open all the while ends.
	n, err = b.Disconnect(t.Context(), []Target{
		{Addr: answering.Addr, Protocol: TCP, Opening: true}, {Addr: answering.Addr, Protocol: TCP},
		{Addr: answering.Addr, Protocol: TCP, Opening: true},
	})
	if n != 1 || err != nil {
		t.Errorf("%d destroyed, %v, want 1", n, err)
	}
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the open connection reads %v", err)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// silence makes 10.66.0.2 an address that nobody answers at.
func silence(t *testing.T) {
	t.Helper()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "silent"}, PeerName: "silentp"}
	addr, err := netlink.ParseAddr("10.66.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("silentp")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link), netlink.LinkSetUp(peer), netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.IPv4(10, 66, 0, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
	})); err != nil {
		t.Fatal(err)
	}
}

// begin returns a socket that is in SYN-SENT.
func begin(t *testing.T, to string) int {
	t.Helper()
	at := netip.MustParseAddrPort(to)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect to %s: %v", to, err)
	}
	return fd
}

func TestSocketsInPodsAreDestroyed(t *testing.T) { bothWays(t, socketsInPods) }

func socketsInPods(t *testing.T, cfg Config) {
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
	n, err := b.Disconnect(t.Context(), []Target{{Addr: dead.Addr, Protocol: UDP}})
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
