package ebpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What an XDP program says of a packet.
const (
	xdpPass = 2
	xdpTX   = 3
)

// likeCards makes eth0 of node a receive as from a network card: whole checksums,
// and another end that takes what a program sends back.
func (l *lab) likeCards() {
	l.t.Helper()
	l.xdp = true
	for _, ns := range []string{"out", "b"} {
		if err := l.do(ns, func() error { return withoutTXChecksum("eth0") }); err != nil {
			l.t.Fatal(err)
		}
	}
	l.attach("lan", "port-a", l.program(asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}))
}

// withoutTXChecksum has the kernel fill in the checksums of what the device sends.
func withoutTXChecksum(device string) error {
	const set = 0x17 // ETHTOOL_STXCSUM
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	value := [2]uint32{set, 0}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], device)
	req.data = unsafe.Pointer(&value)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

// passXDP gives the XDP program one frame as if it came by eth0 of node a.
func (l *lab) passXDP(p *packets, in []byte) (verdict uint32, out []byte) {
	l.t.Helper()
	err := l.do("a", func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		ctx := make([]byte, 24) // struct xdp_md
		binary.NativeEndian.PutUint32(ctx[4:], uint32(len(in)))
		binary.NativeEndian.PutUint32(ctx[12:], uint32(dev.Attrs().Index))
		opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: ctx}
		verdict, err = p.xdp.Run(&opts)
		out = opts.DataOut
		return err
	})
	if err != nil {
		l.t.Fatalf("pass a packet to %s: %v", xdpProgram, err)
	}
	return verdict, out
}

var (
	macOfA     = []byte{2, 0, 0, 0, 1, 1}
	macOfOther = []byte{2, 0, 0, 0, 1, 2}
)

// wired is the lab with neighbours that are known, and one connection of each
// kind, which the tc program has made.
func wired(t *testing.T, l *lab, p *packets, family int, proto Protocol) (there, back frame) {
	t.Helper()
	for _, ns := range []string{"out", "b"} {
		l.in("a", "ip neigh replace "+addrOf[ns][family]+" lladdr 02:00:00:00:01:02 dev eth0 nud permanent")
	}
	id := uint32(2*family+1)<<8 + uint32(proto)
	front := Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), uint16(id)), proto, Outside}
	serve(t, p, front, Service{Backends: []Backend{onPod("podb", family)}}, id, id)
	there = frame{proto: proto, src: netip.AddrPortFrom(netip.MustParseAddr(addrOf["out"][family]), 40000), dst: front.Addr, flags: syn, payload: []byte("odd")}
	led := l.send(p, there)
	back = frame{proto: proto, src: led.dst, dst: led.src, flags: syn | ack, payload: []byte("answer")}
	back.ttl, there.ttl = 64, 64
	l.pass(p, "moot_uplink_in", back.bytes())
	there.flags, back.flags = ack, ack
	return there, back
}

// wire is the frame as it comes to node a.
func (f frame) wire() []byte {
	b := f.bytes()
	copy(b, macOfA)
	copy(b[6:], macOfOther)
	return b
}

func xdpLab(t *testing.T) (*lab, *packets) {
	l := newLab(t, false)
	l.likeCards()
	l.in("a", "ip link set eth0 address 02:00:00:00:01:01")
	p := l.open(false, false, nil)
	t.Cleanup(func() { l.close(p) })
	return l, p
}

func TestDriversLeadPacketsOnAsTheStackDoes(t *testing.T) {
	l, p := xdpLab(t)
	for family, name := range families {
		for _, proto := range []Protocol{TCP, UDP} {
			there, back := wired(t, l, p, family, proto)
			for way, f := range map[string]frame{"there": there, "back": back} {
				verdict, want := l.pass(p, "moot_uplink_in", f.wire())
				if verdict != verdictRedirect {
					t.Fatalf("%s %s %s: the tc program says %d", name, proto, way, verdict)
				}
				copy(want, macOfOther) // which the kernel fills in later
				copy(want[6:], macOfA)
				verdict, got := l.passXDP(p, f.wire())
				if verdict != xdpTX || !bytes.Equal(got, want) {
					t.Errorf("%s %s %s: verdict %d\n got %x\nwant %x", name, proto, way, verdict, got, want)
				}
				if _, err := read(got); err != nil {
					t.Errorf("%s %s %s: %v", name, proto, way, err)
				}
			}
		}
	}
}

// A datagram without a checksum stays without.
func TestDriversMakeUpNoChecksum(t *testing.T) {
	l, p := xdpLab(t)
	there, _ := wired(t, l, p, 0, UDP)
	in := there.wire()
	in[40], in[41] = 0, 0
	if verdict, out := l.passXDP(p, in); verdict != xdpTX || out[40] != 0 || out[41] != 0 {
		t.Errorf("verdict %d, checksum %x", verdict, out[40:42])
	}
}

func TestDriversLeaveTheRestToTheStack(t *testing.T) {
	l, p := xdpLab(t)
	each := func(b []byte, f func([]byte)) []byte { f(b); return b }
	touch := func(t *testing.T, f func(*flow)) {
		for key, fl := range flows(t, p) {
			f(&fl)
			put(t, p, "moot_flows", key, fl)
		}
	}
	// Each case makes of a packet that would be sent on one that is not.
	cases := map[string]func(t *testing.T, f frame) []byte{
		"a SYN":          func(_ *testing.T, f frame) []byte { f.flags = syn; return f.wire() },
		"a FIN":          func(_ *testing.T, f frame) []byte { f.flags = fin | ack; return f.wire() },
		"a reset":        func(_ *testing.T, f frame) []byte { f.flags = rst; return f.wire() },
		"the last hop":   func(_ *testing.T, f frame) []byte { f.ttl = 1; return f.wire() },
		"another client": func(_ *testing.T, f frame) []byte { f.src = netip.AddrPortFrom(f.src.Addr(), 1); return f.wire() },
		"options":        func(_ *testing.T, f frame) []byte { return each(f.wire(), func(b []byte) { b[14] = 0x46 }) },
		"a fragment":     func(_ *testing.T, f frame) []byte { return each(f.wire(), func(b []byte) { b[20] = 0x20 }) },
		"a VLAN's":       func(_ *testing.T, f frame) []byte { return slices.Insert(f.wire(), 12, 0x81, 0, 0, 5) },
		"another's":      func(_ *testing.T, f frame) []byte { return each(f.wire(), func(b []byte) { b[5] = 9 }) },
		"cut off":        func(_ *testing.T, f frame) []byte { return f.wire()[:40] },
		"first in a while": func(t *testing.T, f frame) []byte {
			touch(t, func(f *flow) { f.Seen -= uint64(2 * time.Second) })
			return f.wire()
		},
		"to a backend here": func(t *testing.T, f frame) []byte {
			touch(t, func(f *flow) { f.Flags &^= flowRemote })
			return f.wire()
		},
		"to an unknown neighbour": func(_ *testing.T, f frame) []byte {
			for _, ns := range []string{"out", "b"} {
				l.in("a", "ip neigh del "+addrOf[ns][0]+" dev eth0")
			}
			return f.wire()
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			f, _ := wired(t, l, p, 0, TCP)
			if verdict, _ := l.passXDP(p, f.wire()); verdict != xdpTX {
				t.Fatalf("verdict %d before", verdict)
			}
			in := spoil(t, f)
			if verdict, out := l.passXDP(p, in); verdict != xdpPass || !bytes.Equal(in, out) {
				t.Errorf("verdict %d, %x, came as %x", verdict, out, in)
			}
			for key := range flows(t, p) {
				_ = p.coll.Maps["moot_flows"].Delete(key)
			}
		})
	}
	t.Run("a datagram to a backend that is gone", func(t *testing.T) {
		f, _ := wired(t, l, p, 0, UDP)
		id := uint32(f.dst.Port())
		serve(t, p, Frontend{f.dst, UDP, Outside}, Service{Backends: []Backend{onPod("poda", 0)}}, id, id+1)
		if verdict, _ := l.passXDP(p, f.wire()); verdict != xdpPass {
			t.Errorf("verdict %d", verdict)
		}
	})
}

// Of a connection's packets few reach the stack, and all arrive.
func TestDriversCarryConnections(t *testing.T) {
	l, p := xdpLab(t)
	l.servers("podb")
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = stats.Close() }()
	runs := func(prog *ebpf.Program) uint64 {
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.RunCount()
		return n
	}
	for family, name := range families {
		id := uint32(family + 1)
		serve(t, p, Frontend{anyAddr(family), TCP, Outside}, Service{Backends: []Backend{onPod("podb", family)}}, id, id)
		conn, r, _, _, err := l.hello(netip.AddrPortFrom(netip.MustParseAddr(addrOf["a"][family]), nodePort))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		driver, stack := runs(p.xdp), runs(p.coll.Programs["moot_uplink_in"])
		if err := echo(conn, r, 4<<20); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
		driver, stack = runs(p.xdp)-driver, runs(p.coll.Programs["moot_uplink_in"])-stack
		t.Logf("%s: %d packets, %d of them to the stack", name, driver, stack)
		if driver < 1000 || stack > driver/10 {
			t.Errorf("%s: %d packets, %d of them to the stack", name, driver, stack)
		}
	}
}

// Devices whose packets are not what the program takes them for are left alone,
// and what was attached to one before goes.
func TestDriversAreChosen(t *testing.T) {
	l := newLab(t, false)
	l.xdp = true
	p := l.open(false, false, nil)
	defer l.close(p)
	if out := l.in("a", "ip link show dev eth0"); !strings.Contains(out, "prog/xdp") {
		t.Fatalf("no XDP program is attached:\n%s", out)
	}
	p.unfit = unfit
	err := l.do("a", func() error { return p.setDevices([]string{"eth0"}, nil) })
	if err != nil {
		t.Fatal(err)
	}
	l.noXDP()
	for _, l.xdp = range []bool{true, false} { // a daemon that is not asked for it takes it away
		l.reopen(p)
	}
	l.noXDP()
	card := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 7}}
	for name, tc := range map[string]struct {
		dev netlink.Link
		all []netlink.Link
		fit bool
	}{
		"a card":              {card, []netlink.Link{card}, true},
		"a veth":              {&netlink.Veth{}, nil, false},
		"a tap":               {&netlink.Tuntap{}, nil, false},
		"a bond":              {&netlink.Bond{}, nil, false},
		"a Xen guest's":       {&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 7, ParentDevBus: "xen"}}, nil, false},
		"one with a VLAN":     {card, []netlink.Link{&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: 7}}}, false},
		"one beside a VLAN's": {card, []netlink.Link{&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: 8}}}, true},
	} {
		if err := unfit(tc.dev, tc.all); (err == nil) != tc.fit {
			t.Errorf("%s: %v", name, err)
		}
	}
}
