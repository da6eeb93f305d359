package net

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	stdnet "net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/node/net/host"
)

// segments is three nodes with a pod each: n1 and n3 on one link, n2 behind a
// router that knows no pods.
type segments struct {
	t     *testing.T
	id    string
	mode  Mode
	peers []peer
	nodes map[string]*Agent
}

func newSegments(t *testing.T, mode Mode) *segments {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	s := &segments{t: t, id: fmt.Sprintf("moot-seg-%d-", os.Getpid()), mode: mode, nodes: map[string]*Agent{}}
	for _, ns := range []string{"r", "n1", "n2", "n3", "p1", "p2", "p3"} {
		s.sh("ip netns add %s", s.id+ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.id+ns).Run() })
		s.ip(ns, "link set lo up")
	}
	s.sh("ip netns exec %sr sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'", s.id)
	s.ip("r", "link add one type bridge")
	s.ip("r", "link set one up")
	s.ip("r", "addr add 10.1.0.254/24 dev one")
	s.ip("r", "addr add fd01::254/64 dev one nodad")
	s.node("n1", "10.1.0.1", "fd01::1", 1, true)
	s.node("n2", "10.2.0.2", "fd02::2", 2, false)
	s.node("n3", "10.1.0.3", "fd01::3", 3, true)
	return s
}

func (s *segments) node(name, ip4, ip6 string, number int, bridged bool) {
	router, router6 := "10.2.0.254", "fd02::254"
	s.ip(name, "link add eth0 type veth peer name %s netns %sr", name, s.id)
	if bridged {
		router, router6 = "10.1.0.254", "fd01::254"
		s.ip("r", "link set %s master one", name)
	} else {
		s.ip("r", "addr add %s/24 dev %s", router, name)
		s.ip("r", "addr add %s/64 dev %s nodad", router6, name)
	}
	s.ip("r", "link set %s up", name)
	s.ip(name, "addr add %s/24 dev eth0", ip4)
	s.ip(name, "addr add %s/64 dev eth0 nodad", ip6)
	s.ip(name, "link set eth0 up")
	s.ip(name, "route add default via %s", router)
	s.ip(name, "-6 route add default via %s", router6)
	clusters := []netip.Prefix{cidr("10.42.0.0/16"), cidr("fd42::/48")}
	p := peer{name: name, born: time.Unix(int64(number), 0), addrs: []netip.Addr{addr(ip4), addr(ip6)}}
	p.podCIDRs, _ = claim(name, number, clusters, []peer{p})
	s.peers = append(s.peers, p)
	cfg := DefaultConfig()
	cfg.NodeName, cfg.NodeIPs, cfg.ClusterCIDRs, cfg.Mode = name, p.addrs, clusters, s.mode
	cfg.Log = slog.New(slog.DiscardHandler)
	s.nodes[name] = &Agent{cfg: cfg, faraway: map[netip.Addr]way{}}
	// Its pod, as the plugin would make it, from before there was an overlay.
	pod := "p" + name[1:]
	s.ip(name, "link add pod type veth peer name eth0 netns %s%s", s.id, pod)
	s.ip(name, "link set pod up")
	s.ip(pod, "link set eth0 up")
	for _, c := range p.podCIDRs {
		a, gw := s.pod(pod, c.Addr().Is6()), gatewayOf(c)
		nodad := ""
		if a.Is6() {
			nodad = "nodad"
		}
		s.ip(name, "addr add %s/%d dev pod %s", gw, gw.BitLen(), nodad)
		s.ip(name, "route add %s dev pod", a)
		s.ip(pod, "addr add %s/%d dev eth0 %s", a, a.BitLen(), nodad)
		s.ip(pod, "route add %s dev eth0", gw)
		s.ip(pod, "route add default via %s", gw)
	}
}

// pod is the address of a pod.
func (s *segments) pod(name string, v6 bool) netip.Addr {
	number := int(name[1] - '0')
	cluster := cidr("10.42.0.0/16")
	if v6 {
		cluster = cidr("fd42::/48")
	}
	return partOf(cluster, number-1).Addr().Next().Next()
}

func (s *segments) sh(format string, args ...any) string {
	s.t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func (s *segments) ip(ns, format string, args ...any) string {
	s.t.Helper()
	return s.sh("ip -n %s%s %s", s.id, ns, fmt.Sprintf(format, args...))
}

// in runs f in a namespace, on a thread that ends with it.
func (s *segments) in(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		fd, err := os.Open("/run/netns/" + s.id + ns)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = fd.Close() }()
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// connect lets every node do what an agent does about routes.
func (s *segments) connect() {
	s.t.Helper()
	for name, a := range s.nodes {
		err := s.in(name, func() error {
			if err := errors.Join(host.Forward(false), host.Forward(true)); err != nil {
				return err
			}
			plan := a.terrain().plan(s.peers)
			var gateways []netip.Addr
			for _, c := range plan.own {
				gateways = append(gateways, gatewayOf(c))
			}
			if err := setGateway(a.cfg.ClusterCIDRs, gateways); err != nil {
				return err
			}
			return a.connect(plan)
		})
		if err != nil {
			s.t.Fatalf("connect %s: %v", name, err)
		}
	}
}

// listen serves in a namespace until the test ends: TCP gives back all it gets,
// UDP each packet.
func (s *segments) listen(ns string) {
	s.t.Helper()
	err := s.in(ns, func() error {
		l, err := stdnet.Listen("tcp", ":7")
		if err != nil {
			return err
		}
		p, err := stdnet.ListenPacket("udp", ":7")
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { _ = errors.Join(l.Close(), p.Close()) })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
			}
		}()
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(buf[:n], from)
			}
		}()
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// exchange sends much by TCP and a packet larger than any link by UDP.
func (s *segments) exchange(from string, to netip.Addr) error {
	target := netip.AddrPortFrom(to, 7).String()
	return s.in(from, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		var d stdnet.Dialer
		conn, err := d.DialContext(ctx, "tcp", target)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		deadline, _ := ctx.Deadline()
		const size = 1 << 20
		sent := make(chan error, 1)
		go func() { _, err := conn.Write(make([]byte, size)); sent <- err }()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		if err := <-sent; err != nil {
			return err
		}
		u, err := d.DialContext(ctx, "udp", target)
		if err != nil {
			return err
		}
		defer func() { _ = u.Close() }()
		buf := make([]byte, 8000)
		for ctx.Err() == nil { // the first may tell the kernel what fits
			_ = u.SetDeadline(time.Now().Add(time.Second))
			if _, err = u.Write(buf[:6000]); err == nil {
				if _, err = u.Read(buf); err == nil {
					return nil
				}
			}
		}
		return fmt.Errorf("UDP: %w", err)
	})
}

func (s *segments) all(label string) {
	s.t.Helper()
	for _, from := range []string{"p1", "p2", "p3"} {
		for _, to := range []string{"p1", "p2", "p3"} {
			for _, v6 := range []bool{false, true} {
				if err := s.exchange(from, s.pod(to, v6)); err != nil && from != to {
					s.t.Fatalf("%s: %s to %s (IPv6 %v): %v\n%s", label, from, to, v6, err, s.dump("n"+from[1:]))
				}
			}
		}
	}
	// From a node itself, host-network pods for example.
	for _, v6 := range []bool{false, true} {
		if err := s.exchange("n1", s.pod("p2", v6)); err != nil {
			s.t.Fatalf("%s: n1 to p2 (IPv6 %v): %v", label, v6, err)
		}
	}
}

func (s *segments) dump(node string) string {
	return s.ip(node, "route") + s.ip(node, "-6 route") + s.ip(node, "neigh") + s.ip(node, "-d link show type vxlan")
}

func TestSegments(t *testing.T) {
	for _, mode := range []Mode{ModeAuto, ModeVXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			s := newSegments(t, mode)
			for _, p := range []string{"p1", "p2", "p3"} {
				s.listen(p)
			}
			s.connect()
			s.connect() // nothing to do
			s.all("at first")
			onLink := !strings.Contains(s.ip("n1", "route get 10.42.2.2"), OverlayLink)
			if onLink != (mode == ModeAuto) || !strings.Contains(s.ip("n1", "route get 10.42.1.2"), OverlayLink) {
				t.Errorf("ways of n1:\n%s", s.dump("n1"))
			}
			// Node 2 gets another address.
			s.ip("n2", "addr del 10.2.0.2/24 dev eth0")
			s.ip("n2", "addr add 10.2.0.9/24 dev eth0")
			s.ip("n2", "route replace default via 10.2.0.254")
			s.peers[1].addrs[0] = addr("10.2.0.9") // shared with its agent
			s.connect()
			s.all("after a new address")
			if fdb := s.sh("ip netns exec %sn1 bridge fdb show dev %s", s.id, OverlayLink); strings.Contains(fdb, "10.2.0.2 ") || !strings.Contains(fdb, "10.2.0.9 ") {
				t.Errorf("forwarding entries of n1:\n%s", fdb)
			}
			// Somebody takes things away.
			s.ip("n1", "neigh flush dev %s", OverlayLink)
			s.ip("n1", "link set %s mtu 1300", OverlayLink)
			s.ip("n3", "link del %s", OverlayLink)
			s.connect()
			s.all("after damage")
			for name, a := range s.nodes {
				a.cfg.CNIConfFile = t.TempDir() + "/none"
				if err := s.in(name, func() error { return Cleanup(t.Context(), a.cfg) }); err != nil {
					t.Fatal(err)
				}
				left := s.ip(name, "link") + s.ip(name, "route") + s.ip(name, "-6 route") + s.ip(name, "addr show dev lo")
				if strings.Contains(left, OverlayLink) || strings.Contains(left, "proto 77") {
					t.Errorf("left on %s:\n%s", name, left)
				}
				if tables := s.sh("ip netns exec %s%s nft list tables", s.id, name); strings.Contains(tables, "moot") {
					t.Errorf("left on %s: %s", name, tables)
				}
			}
		})
	}
}

// TestOverlayGuard sends a packet into the overlay from a member's address and
// from a stranger's.
func TestOverlayGuard(t *testing.T) {
	s := newSegments(t, ModeAuto)
	s.connect()
	s.ip("n1", "addr add 10.1.0.77/24 dev eth0")
	got := s.datagrams("p2")
	send := func(from, text string) {
		t.Helper()
		err := s.in("n1", func() error {
			conn, err := stdnet.DialUDP("udp4", &stdnet.UDPAddr{IP: addr(from).AsSlice()}, &stdnet.UDPAddr{IP: addr("10.2.0.2").AsSlice(), Port: DefaultOverlayPort})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = conn.Write(overlayPacket(overlayMAC(addr("10.2.0.2")), s.pod("p1", false), s.pod("p2", false), text))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Packets of one way keep their order, so one stranger's that was let in
	// would be there before the member's.
	for i := range 5 {
		send("10.1.0.77", "stranger")
		send("10.1.0.1", fmt.Sprint("member ", i))
		select {
		case text := <-got:
			if text != fmt.Sprint("member ", i) {
				t.Fatalf("the pod got %q", text)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the member's packet did not arrive")
		}
	}
	if rules := s.sh("ip netns exec %sn2 nft list table inet %s", s.id, guardTable); !strings.Contains(rules, "packets 5 ") {
		t.Errorf("strangers' packets are not counted:\n%s", rules)
	}
	// The guard holds against a flush of all tables by the next look.
	s.sh("ip netns exec %sn2 nft flush ruleset", s.id)
	s.connect()
	if rules := s.sh("ip netns exec %sn2 nft list ruleset", s.id); !strings.Contains(rules, guardTable) {
		t.Errorf("no guard after a flush:\n%s", rules)
	}
}

// TestOverlayTakesWhatIsAnsweredByALink sends a pod a packet through the overlay
// from an address that is not answered through it, as while the nodes see the way
// between them differently, on machines that filter sources.
func TestOverlayTakesWhatIsAnsweredByALink(t *testing.T) {
	s := newSegments(t, ModeAuto)
	s.sh("ip netns exec %sn2 sysctl -qw net.ipv4.conf.all.rp_filter=1", s.id)
	s.connect()
	got := s.datagrams("p2")
	err := s.in("n1", func() error {
		conn, err := stdnet.DialUDP("udp4", nil, &stdnet.UDPAddr{IP: addr("10.2.0.2").AsSlice(), Port: DefaultOverlayPort})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, err = conn.Write(overlayPacket(overlayMAC(addr("10.2.0.2")), addr("10.1.0.1"), s.pod("p2", false), "words"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-got:
		if text != "words" {
			t.Errorf("the pod got %q", text)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("the packet did not arrive\n%s", s.ip("n2", "addr show dev %s", OverlayLink))
	}
}

// datagrams is what comes to port 9 of a namespace.
func (s *segments) datagrams(ns string) <-chan string {
	s.t.Helper()
	got := make(chan string, 16)
	err := s.in(ns, func() error {
		p, err := stdnet.ListenPacket("udp4", ":9")
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { _ = p.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, _, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				got <- string(buf[:n])
			}
		}()
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// overlayPacket is what a VXLAN device would send: the header, and an Ethernet
// frame with a UDP packet to port 9.
func overlayPacket(mac [6]byte, from, to netip.Addr, text string) []byte {
	udp := append([]byte{0, 9, 0, 9, 0, byte(8 + len(text)), 0, 0}, text...)
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	frame := append(append(append([]byte{}, mac[:]...), 2, 0, 0, 0, 0, 1, 8, 0), append(ip, udp...)...)
	return append([]byte{8, 0, 0, 0, overlayVNI >> 16, overlayVNI >> 8 & 0xff, overlayVNI & 0xff, 0}, frame...)
}

// TestWayOverTunnel holds that a link which takes only some addresses is not
// taken for one that takes all.
func TestWayOverTunnel(t *testing.T) {
	inNamespace(t)
	if w, known := wayTo(addr("10.0.0.7")); w != wayDirect || !known {
		t.Errorf("on the link: %v, %v", w, known)
	}
	if _, known := wayTo(addr("192.0.2.1")); known {
		t.Error("an address without a route has a known way")
	}
	tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(tun); err != nil {
		t.Skipf("no tun device: %v", err)
	}
	if err := errors.Join(
		netlink.AddrAdd(tun, &netlink.Addr{IPNet: ipNet(cidr("10.9.0.1/24"))}), netlink.LinkSetUp(tun),
	); err != nil {
		t.Fatal(err)
	}
	if w, known := wayTo(addr("10.9.0.2")); w != wayRouted || !known {
		t.Errorf("behind a tunnel: %v, %v", w, known)
	}
}
