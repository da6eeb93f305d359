package ebpf

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A packet too large for the way to its backend: the client learns by ICMP how
// large one may be, sends it in fragments that fit, and is answered.
func TestClientsFromOutsideLearnThePathMTU(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			for i, pod := range []string{"poda", "podb"} {
				id := uint32(family*2 + i + 1)
				at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), uint16(80+i))
				serve(t, p, Frontend{at, UDP, Outside}, Service{Backends: []Backend{onPod(pod, family)}}, id, id)
				if pod == "poda" {
					l.in("a", "ip link set pod mtu 1400")
					l.in("poda", "ip link set eth0 mtu 1400")
				}
				u, err := l.dial("udp", at)
				if err != nil {
					t.Fatal(err)
				}
				if who, err := ask(u, strings.Repeat("x", 1440)); err != nil || who != pod {
					t.Errorf("%s: large datagram to %s: %s, %v", name, pod, who, err)
				}
				_ = u.Close()
			}
		}
	})
}

// A packet with a single hop left gets as far as this node, which says so.
func TestHopsAreCounted(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for i, pod := range []string{"poda", "podb"} {
			id := uint32(i + 1)
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][0]), uint16(80+i))
			serve(t, p, Frontend{at, TCP, Outside}, Service{Backends: []Backend{onPod(pod, 0)}}, id, id)
			err := l.do("out", func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer func() { _ = unix.Close(fd) }()
				for _, opt := range [][3]int{{unix.IPPROTO_IP, unix.IP_TTL, 1}, {unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1}} {
					if err := unix.SetsockoptInt(fd, opt[0], opt[1], opt[2]); err != nil {
						return err
					}
				}
				return unix.Connect(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
			})
			// Not ETIMEDOUT: the error came from a router, and was for this socket.
			if !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("%s: one hop: %v, want %v", pod, err, syscall.EHOSTUNREACH)
			}
		}
	})
}

func TestClientsOfOtherRangesAreKeptOut(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		for family, name := range families {
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 80)
			for i, s := range []Service{
				{Backends: []Backend{onPod("poda", family)}, Sources: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addrOf["podb"][family]), 24)}},
				{Drop: true},
			} {
				id := uint32(family*2 + i + 1)
				serve(t, p, Frontend{at, TCP, Outside}, s, id, id)
				err := l.do("out", func() error {
					kind := []int{unix.AF_INET, unix.AF_INET6}[family]
					fd, err := unix.Socket(kind, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					defer func() { _ = unix.Close(fd) }()
					if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 300_000}); err != nil {
						return err
					}
					if family == 0 {
						return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: at.Addr().As4()})
					}
					return unix.Connect(fd, &unix.SockaddrInet6{Port: 80, Addr: at.Addr().As16()})
				})
				if !errors.Is(err, syscall.EINPROGRESS) {
					t.Errorf("%s: service %d: %v, want silence", name, i, err)
				}
			}
		}
	})
}
