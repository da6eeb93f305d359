package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// shopfront serves on node a what the tables below ask for: by NodePort and by an
// external address, TCP and UDP, one pod here and one elsewhere.
func shopfront(t *testing.T, l *lab) *packets {
	t.Helper()
	p := l.open(false, false, nil)
	id := uint32(0)
	add := func(addr netip.AddrPort, proto Protocol, s Service) {
		id++
		serve(t, p, Frontend{addr, proto, Outside}, s, id, id)
	}
	for family := range families {
		lb := netip.MustParseAddr(addrOf["lb"][family])
		for _, proto := range []Protocol{TCP, UDP} {
			add(anyAddr(family), proto, Service{Backends: []Backend{onPod("podb", family)}})
			add(netip.AddrPortFrom(lb, 80), proto, Service{Backends: []Backend{onPod("podb", family)}})
			add(netip.AddrPortFrom(lb, 81), proto, Service{Backends: []Backend{onPod("poda", family)}})
			add(netip.AddrPortFrom(lb, 82), proto, Service{Drop: true})
			add(netip.AddrPortFrom(lb, 83), proto, Service{})
			add(netip.AddrPortFrom(lb, 84), proto, Service{
				Backends: []Backend{onPod("poda", family)},
				Sources:  []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addrOf["poda"][family]), 32)},
			})
		}
	}
	return p
}

// TestPacketsInAndOut gives the programs single packets and compares what comes
// out, to the byte where it is not theirs.
func TestPacketsInAndOut(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	const untouched = ""
	port := uint16(40000)
	for family, name := range families {
		addr := func(of string) string { return addrOf[of][family] }
		for what, c := range map[string]struct {
			to      string
			port    uint16
			flags   uint8
			program string
			verdict uint32
			src     string // none: the client's own, port and all
			dst     string // none: not touched at all
			dport   uint16
		}{
			"NodePort":                {addr("a"), nodePort, syn, "", verdictRedirect, addr("a"), addr("podb"), podPort},
			"external, elsewhere":     {addr("lb"), 80, syn, "", verdictRedirect, addr("a"), addr("podb"), podPort},
			"external, here":          {addr("lb"), 81, syn, "", verdictNext, "", addr("poda"), podPort},
			"external, in the middle": {addr("lb"), 81, ack, "", verdictNext, "", addr("poda"), podPort},
			"nobody, silent":          {addr("lb"), 82, syn, "", verdictDrop, "", untouched, 0},
			"nobody, refused":         {addr("lb"), 83, syn, "", verdictNext, "", addr("a"), 0},
			"another's range":         {addr("lb"), 84, syn, "", verdictDrop, "", untouched, 0},
			"another port":            {addr("a"), nodePort + 1, syn, "", verdictNext, "", untouched, 0},
			"another address":         {addr("b"), nodePort, syn, "", verdictNext, "", untouched, 0},
			"a pod's own address":     {addr("poda"), podPort, syn, "", verdictNext, "", untouched, 0},
			"a client in the overlay": {addr("a"), nodePort, syn, "moot_overlay_in", verdictNext, "", untouched, 0},
			"leaving":                 {addr("a"), nodePort, syn, "moot_uplink_out", verdictNext, "", untouched, 0},
		} {
			for _, proto := range []Protocol{TCP, UDP} {
				port++ // no connection is known
				client := netip.AddrPortFrom(netip.MustParseAddr(addr("out")), port)
				in := frame{proto: proto, src: client, dst: netip.AddrPortFrom(netip.MustParseAddr(c.to), c.port), flags: c.flags, ttl: 64, payload: []byte("words")}
				program := c.program
				if program == "" {
					program = "moot_uplink_in"
				}
				verdict, out := l.pass(p, program, in.bytes())
				got, err := read(out)
				want := frame{src: client, dst: netip.AddrPortFrom(netip.MustParseAddr(c.to), c.port), ttl: 64}
				if c.dst != untouched {
					want.dst = netip.AddrPortFrom(netip.MustParseAddr(c.dst), c.dport)
				} else if !bytes.Equal(out, in.bytes()) {
					t.Errorf("%s, %s %s: changed", what, name, proto)
				}
				if c.src != "" {
					if sport := got.src.Port(); sport < 10240 || sport >= 30000 {
						t.Errorf("%s, %s %s: from port %d", what, name, proto, sport)
					}
					want.src, want.ttl = netip.AddrPortFrom(netip.MustParseAddr(c.src), got.src.Port()), 63
				}
				if err != nil || verdict != c.verdict || got.src != want.src || got.dst != want.dst || got.ttl != want.ttl {
					t.Errorf("%s, %s %s: verdict %d, %s > %s, %d hops, %v; want %d, %s > %s, %d", what, name, proto,
						verdict, got.src, got.dst, got.ttl, err, c.verdict, want.src, want.dst, want.ttl)
				}
			}
		}
	}
	for what, in := range map[string]frame{
		"a reset of no connection": {proto: TCP, flags: rst},
		"the last hop's answer":    {proto: TCP, flags: rst | ack},
	} {
		in.src, in.dst, in.ttl = netip.MustParseAddrPort("10.0.0.9:50000"), netip.MustParseAddrPort("192.0.2.80:80"), 64
		if verdict, out := l.pass(p, "moot_uplink_in", in.bytes()); verdict != verdictDrop || !bytes.Equal(out, in.bytes()) {
			t.Errorf("%s: verdict %d", what, verdict)
		}
	}
}

// odd is a datagram or segment of a client to a frontend here, by family.
func odd(family int, proto Protocol, port uint16) frame {
	return frame{
		proto: proto, flags: syn, ttl: 64, payload: []byte("some words"),
		src: netip.AddrPortFrom(netip.MustParseAddr(addrOf["out"][family]), port),
		dst: netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 81),
	}
}

// What is cut short, of another protocol or no packet at all is left alone.
func TestPacketsOfOtherKindsAreLeftAlone(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	untouched := func(what string, in []byte) {
		t.Helper()
		if verdict, out := l.pass(p, "moot_uplink_in", in); verdict != verdictNext || !bytes.Equal(in, out) {
			t.Errorf("%s: verdict %d, changed %t", what, verdict, !bytes.Equal(in, out))
		}
	}
	for family, name := range families {
		head := []int{34, 54}[family]
		for _, proto := range []Protocol{TCP, UDP} {
			whole := odd(family, proto, 50000).bytes()
			need := head + map[Protocol]int{TCP: 14, UDP: 4}[proto]
			for n := head; n < need; n++ { // shorter ones the kernel refuses to try
				untouched(name+" cut short", whole[:n])
			}
		}
		kind := head - 11 // where the header tells the protocol
		if family == 1 {
			kind = 20
		}
		for _, proto := range []byte{132, 50, 4, 41, 0, 255} {
			in := odd(family, UDP, 50000).bytes()
			in[kind] = proto
			untouched(name+" of another protocol", in)
		}
		in := odd(family, TCP, 50000).bytes()
		in[14] = 0x25 // of version 2
		untouched(name+" of no version", in)
		in = odd(family, TCP, 50000).bytes()
		in[12], in[13] = 0x08, 0x06
		untouched("ARP", in)
	}
	if n := len(flows(t, p)); n > 0 {
		t.Errorf("%d entries are kept of them", n)
	}
	short := odd(0, TCP, 50000).bytes()
	short[14] = 0x42 // a header of 8 bytes
	untouched("IPv4 with a short header", short)
}

// A checksum that was wrong stays wrong, by as much, and one that UDP leaves out
// stays left out: whoever checks it is to see what the client sent.
func TestWrongChecksumsStayWrong(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	for family, name := range families {
		for i, proto := range []Protocol{TCP, UDP} {
			in := odd(family, proto, uint16(50000+i)).bytes()
			last := len(in) - 1
			in[last] ^= 0x40
			_, out := l.pass(p, "moot_uplink_in", in)
			if _, err := read(out); err == nil || bytes.Equal(in, out) {
				t.Errorf("%s %s: mended", name, proto)
			}
			out[last] ^= 0x40
			if _, err := read(out); err != nil {
				t.Errorf("%s %s: wrong by another amount: %v", name, proto, err)
			}
		}
	}
	in := odd(0, UDP, 50009).bytes()
	in[40], in[41] = 0, 0
	if _, out := l.pass(p, "moot_uplink_in", in); out[40] != 0 || out[41] != 0 || bytes.Equal(in, out) {
		t.Errorf("a datagram without checksum has %x", out[40:42])
	}
}

// Fragments follow their first, whose ports they do not have.
func TestFragmentsFollowTheirFirst(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	for family, name := range families {
		cut := func(offset uint16, more bool, id byte) []byte {
			in := odd(family, UDP, 50000).bytes()
			if family == 0 {
				off := offset / 8
				if more {
					off |= 0x2000
				}
				binary.BigEndian.PutUint16(in[20:], off)
				in[19] = id
				in[24], in[25] = 0, 0
				binary.BigEndian.PutUint16(in[24:], ^sum16(in[14:34]))
				return in
			}
			head := []byte{17, 0, byte(offset >> 8), byte(offset), 0, 0, 0, id}
			if more {
				head[3] |= 1
			}
			in[20] = 44
			binary.BigEndian.PutUint16(in[18:], binary.BigEndian.Uint16(in[18:])+8)
			return append(append(bytes.Clone(in[:54]), head...), in[54:]...)
		}
		dst := func(b []byte) netip.Addr {
			if family == 0 {
				return netip.AddrFrom4([4]byte(b[30:34]))
			}
			return netip.AddrFrom16([16]byte(b[38:54]))
		}
		lost := cut(64, false, 1)
		if verdict, out := l.pass(p, "moot_uplink_in", lost); verdict != verdictNext || !bytes.Equal(lost, out) {
			t.Errorf("%s: a fragment without its first: verdict %d", name, verdict)
		}
		pod := onPod("poda", family).Addr.Addr()
		for _, offset := range []uint16{0, 64, 128} {
			in := cut(offset, offset < 128, 2)
			verdict, out := l.pass(p, "moot_uplink_in", in)
			if verdict != verdictNext || dst(out) != pod || len(out) != len(in) {
				t.Errorf("%s: the fragment at %d goes to %s, verdict %d", name, offset, dst(out), verdict)
			}
			body := len(in) - 14
			if offset > 0 && !bytes.Equal(in[len(in)-body+map[int]int{0: 20, 1: 40}[family]:], out[len(out)-body+map[int]int{0: 20, 1: 40}[family]:]) {
				t.Errorf("%s: what the fragment at %d carries was changed", name, offset)
			}
		}
	}
}

// No bytes make a program fail, or give a verdict that it has not.
func TestGarbageIsSurvived(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	rnd := rand.New(rand.NewPCG(1, 2))
	seeds := [][]byte{}
	for family := range families {
		for _, proto := range []Protocol{TCP, UDP} {
			seeds = append(seeds, odd(family, proto, 50000).bytes())
		}
		quoting := odd(family, UDP, 50000).bytes()
		quoting[[]int{23, 20}[family]] = []byte{1, 58}[family]
		quoting[[]int{34, 54}[family]] = []byte{3, 1}[family]
		seeds = append(seeds, append(quoting, odd(family, TCP, 50000).bytes()[14:]...))
	}
	for range 4000 {
		in := bytes.Clone(seeds[rnd.IntN(len(seeds))])
		for range rnd.IntN(12) {
			in[14+rnd.IntN(len(in)-14)] = byte(rnd.Uint32())
		}
		in = in[:max(54, len(in)-rnd.IntN(2)*rnd.IntN(len(in)))] // shorter ones the kernel refuses to try
		for _, program := range []string{"moot_uplink_in", "moot_uplink_out", "moot_overlay_in"} {
			verdict, out := l.pass(p, program, in)
			if len(out) != len(in) || verdict != verdictNext && verdict != verdictDrop && verdict != verdictRedirect {
				t.Fatalf("%s of %x: verdict %d, %x", program, in, verdict, out)
			}
		}
	}
}

// An error of a router on the way to a backend is told to the client, about the
// packet that the client sent.
func TestErrorsOfRoutersReachTheClient(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	in := odd(0, TCP, 50000)
	in.dst = netip.AddrPortFrom(in.dst.Addr(), 80)
	led := l.send(p, in)
	led.flags, led.ttl = in.flags, 1
	quoted := led.bytes()[14 : 14+28]
	router := netip.MustParseAddr("10.0.0.2")
	message := append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, quoted...)
	binary.BigEndian.PutUint16(message[2:], ^sum16(message))
	packet := frame{proto: UDP, src: netip.AddrPortFrom(router, 1), dst: led.src, ttl: 64}.bytes()[:34]
	packet[23] = unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(packet[16:], uint16(20+len(message)))
	packet[24], packet[25] = 0, 0
	binary.BigEndian.PutUint16(packet[24:], ^sum16(packet[14:34]))
	verdict, out := l.pass(p, "moot_uplink_in", append(packet, message...))
	var errs []error
	if sum16(out[14:34]) != 0xffff || sum16(out[34:]) != 0xffff || sum16(out[42:62]) != 0xffff {
		errs = append(errs, errors.New("a checksum is wrong"))
	}
	addr := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(out[at : at+4])) }
	port := func(at int) uint16 { return binary.BigEndian.Uint16(out[at:]) }
	if addr(30) != in.src.Addr() || addr(54) != in.src.Addr() || addr(58) != in.dst.Addr() || port(62) != in.src.Port() || port(64) != in.dst.Port() {
		errs = append(errs, errors.New("it is not about the client's packet"))
	}
	if err := errors.Join(errs...); err != nil || verdict != verdictRedirect {
		t.Errorf("verdict %d, %v: %x", verdict, err, out)
	}
	// A ping is nobody's error, and an error about what is not tracked is not ours.
	for _, kind := range []byte{8, 11} {
		other := append(bytes.Clone(packet), message...)
		other[34], other[58] = kind, 99
		if verdict, out := l.pass(p, "moot_uplink_in", other); verdict != verdictNext || !bytes.Equal(out, other) {
			t.Errorf("ICMP %d: verdict %d", kind, verdict)
		}
	}
}
