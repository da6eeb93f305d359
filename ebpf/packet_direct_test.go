package ebpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// A neighbour that knows the way to the pods reaches one through a NodePort of
// its node and then by its own address, from the same port: what is kept of the
// first connection is not to turn the answers to the second.
func TestDirectConnectionsFromTheSamePort(t *testing.T) {
	l := newLab(t, false)
	l.in("out", "ip route add 10.42.1.0/24 via "+addrOf["a"][0])
	l.servers("poda")
	p := l.open(false, false, nil)
	defer l.close(p)
	pod := netip.AddrPortFrom(netip.MustParseAddr(addrOf["poda"][0]), podPort)
	serve(t, p, Frontend{anyAddr(0), TCP, Outside}, Service{Backends: []Backend{{Addr: pod, Local: true}}}, 1, 1)
	for port := 45001; port <= 45005; port++ {
		for _, to := range []string{fmt.Sprintf("%s:%d", addrOf["a"][0], nodePort), pod.String()} {
			if err := l.talkFrom(port, to); err != nil {
				t.Errorf("from port %d to %s: %v", port, to, err)
			}
		}
	}
}

// talkFrom has a short conversation that both sides end.
func (l *lab) talkFrom(port int, to string) error {
	d := net.Dialer{
		Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{Port: port},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			return raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
			})
		},
	}
	var conn net.Conn
	err := l.do("out", func() (err error) {
		conn, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadAll(conn)
	return err
}
