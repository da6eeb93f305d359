package ebpf

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A packet too large for the way to its backend: the client learns by ICMP how
// large one may be, sends it in fragments that fit, and is answered.
func TestClientsFromOutsideLearnThePathMTU(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		askBothPods(t, l, p, 1440, func(pod string) {
			if pod == "poda" {
				l.in("a", "ip link set pod mtu 1400")
				l.in("poda", "ip link set eth0 mtu 1400")
			}
		})
	})
}

// askBothPods sends a datagram of the size to each pod through a Service and is
// answered; before is called when the Service is there.
func askBothPods(t *testing.T, l *lab, p *packets, size int, before func(pod string)) {
	t.Helper()
	for family, name := range families {
		for i, pod := range []string{"poda", "podb"} {
			id := uint32(family*2 + i + 1)
			at := netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), uint16(80+i))
			serve(t, p, Frontend{at, UDP, Outside}, Service{Backends: []Backend{onPod(pod, family)}}, id, id)
			before(pod)
			u, err := l.dial("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			if who, err := ask(u, strings.Repeat("x", size)); err != nil || who != pod {
				t.Errorf("%s: %d bytes to %s: %s, %v", name, size, pod, who, err)
			}
			_ = u.Close()
		}
	}
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

// A packet with a VLAN's tag comes by the VLAN's own device, too, which is where it
// is balanced: by this one its answer would leave without the tag.
func TestTaggedPacketsAreLeftToTheirDevice(t *testing.T) {
	l := newLab(t, false)
	p := l.open(false, false, nil)
	defer l.close(p)
	to := netip.MustParseAddr(addrOf["a"][0])
	serve(t, p, Frontend{anyAddr(0), TCP, Outside}, Service{Backends: []Backend{onPod("podb", 0)}}, 1, 1)
	link := slices.Concat(l.device("a", "eth0").HardwareAddr, l.device("out", "eth0").HardwareAddr)
	for i, tag := range [][]byte{{0x81, 0x00, 0x00, 5}, {0x81, 0x00, 0xe0, 0}, nil} {
		client := netip.AddrPortFrom(netip.MustParseAddr(addrOf["out"][0]), uint16(40000+i))
		in := frame{proto: TCP, src: client, dst: netip.AddrPortFrom(to, nodePort), flags: syn, ttl: 64}.bytes()
		copy(in, link)
		l.put("out", slices.Insert(in, 12, tag...))
	}
	known := func(port uint16) bool {
		for k := range flows(t, p) {
			if k.SrcPort == order(port) {
				return true
			}
		}
		return false
	}
	for start := time.Now(); !known(40002); { // the last: the others came before it
		if time.Since(start) > patience {
			t.Fatal("no packet came through")
		}
	}
	if known(40000) {
		t.Error("a packet of a VLAN was balanced by the device below")
	}
	if !known(40001) {
		t.Error("a packet with a priority and of no VLAN was not balanced")
	}
}

// put sends a frame as it is by eth0.
func (l *lab) put(ns string, frame []byte) {
	l.t.Helper()
	to := &unix.SockaddrLinklayer{Ifindex: l.device(ns, "eth0").Index}
	err := l.do(ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, frame, 0, to), unix.Close(fd))
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// A datagram that its client sends in fragments reaches the backend, also where a
// fragment is too large for the way there: nobody forbade to cut it again.
func TestLargeDatagramsReachBackends(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) { askBothPods(t, l, p, 4000, func(string) {}) })
}

// A device with a qdisc that has no place for both programs is told of, and takes
// none; the others are served.
func TestDevicesWithAnotherQdiscAreTold(t *testing.T) {
	l := newLab(t, false)
	p := l.open(true, false, nil)
	defer l.close(p)
	for _, name := range []string{"eth1", "eth2"} {
		l.in("a", "ip link add "+name+" type bridge")
	}
	l.in("a", "tc qdisc add dev eth1 ingress")
	err := l.do("a", func() error { return p.setDevices([]string{"eth1", "eth2", "eth0"}, nil) })
	if err == nil || !strings.Contains(err.Error(), "moot_uplink_in to eth1: add clsact qdisc: there is an ingress qdisc") || strings.Contains(err.Error(), "eth2") {
		t.Errorf("with an ingress qdisc: %v", err)
	}
	for name, want := range map[string]bool{"eth0": true, "eth1": false, "eth2": true} {
		if out := l.in("a", "tc filter show dev "+name+" ingress"); strings.Contains(out, "moot_uplink_in") != want || strings.Contains(out, "moot_uplink_out") {
			t.Errorf("filters of %s:\n%s", name, out)
		}
	}
}
