package ebpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// What the programs say of a packet.
const (
	verdictNext     = 1<<32 - 1
	verdictDrop     = 2
	verdictRedirect = 7
)

// Flags of TCP.
const (
	fin = 1 << iota
	syn
	rst
	_
	ack
)

// frame is one packet on the wire.
type frame struct {
	proto    Protocol
	src, dst netip.AddrPort
	flags    uint8 // of TCP
	seq      uint32
	ttl      uint8
	payload  []byte
}

// bytes returns it as an Ethernet frame with checksums that are right.
func (f frame) bytes() []byte {
	l4 := order(f.src.Port())
	segment := append(l4[:], 0, 0)
	binary.BigEndian.PutUint16(segment[2:], f.dst.Port())
	at := 6 // of the checksum
	if f.proto == TCP {
		at = 16
		segment = binary.BigEndian.AppendUint32(segment, f.seq)
		segment = append(segment, 0, 0, 0, 1, 5<<4, f.flags, 0xff, 0xff, 0, 0, 0, 0)
	} else {
		segment = binary.BigEndian.AppendUint16(segment, uint16(8+len(f.payload)))
		segment = append(segment, 0, 0)
	}
	segment = append(segment, f.payload...)
	check := ^sum16(pseudo(f.src.Addr(), f.dst.Addr(), f.proto, len(segment)), segment)
	binary.BigEndian.PutUint16(segment[at:], check)

	out := append(make([]byte, 12), 0x08, 0x00)
	if f.src.Addr().Is6() {
		out[12], out[13] = 0x86, 0xdd
		out = append(out, 0x60, 0, 0, 0)
		out = binary.BigEndian.AppendUint16(out, uint16(len(segment)))
		out = append(out, uint8(f.proto), f.ttl)
	} else {
		out = append(out, 0x45, 0)
		out = binary.BigEndian.AppendUint16(out, uint16(20+len(segment)))
		out = append(out, 0, 7, 0x40, 0, f.ttl, uint8(f.proto), 0, 0)
	}
	out = append(append(out, f.src.Addr().AsSlice()...), f.dst.Addr().AsSlice()...)
	if f.src.Addr().Is4() {
		binary.BigEndian.PutUint16(out[24:], ^sum16(out[14:34]))
	}
	return append(out, segment...)
}

func pseudo(src, dst netip.Addr, proto Protocol, size int) []byte {
	out := append(src.AsSlice(), dst.AsSlice()...)
	return append(out, 0, uint8(proto), byte(size>>8), byte(size))
}

// sum16 is the Internet checksum's sum (RFC 1071), each part of even length but
// the last.
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := range p {
			if i%2 == 0 {
				sum += uint32(p[i]) << 8
			} else {
				sum += uint32(p[i])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// read tells addresses, ports and hops of a TCP or UDP packet without options,
// and what is wrong with its checksums.
func read(b []byte) (frame, error) {
	var f frame
	l4 := 34
	if b[12] == 0x08 {
		f.ttl, f.proto = b[22], Protocol(b[23])
		f.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[26:30])), 0)
		f.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[30:34])), 0)
		if sum16(b[14:34]) != 0xffff {
			return f, fmt.Errorf("checksum of the header: %#x", b[24:26])
		}
	} else {
		l4 = 54
		f.ttl, f.proto = b[21], Protocol(b[20])
		f.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[22:38])), 0)
		f.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[38:54])), 0)
	}
	segment := b[l4:]
	if sum16(pseudo(f.src.Addr(), f.dst.Addr(), f.proto, len(segment)), segment) != 0xffff {
		return f, fmt.Errorf("checksum of %s", f.proto)
	}
	f.src = netip.AddrPortFrom(f.src.Addr(), binary.BigEndian.Uint16(segment))
	f.dst = netip.AddrPortFrom(f.dst.Addr(), binary.BigEndian.Uint16(segment[2:]))
	return f, nil
}

// pass gives the program one frame as if it passed eth0 of node a, and returns
// its verdict and what became of the frame.
func (l *lab) pass(p *packets, program string, in []byte) (verdict uint32, out []byte) {
	l.t.Helper()
	return l.passBy(p, l.index("a", "eth0"), program, in)
}

// passBy does by the device of an index.
func (l *lab) passBy(p *packets, device uint32, program string, in []byte) (verdict uint32, out []byte) {
	l.t.Helper()
	err := l.do("a", func() (err error) {
		ctx := make([]byte, 44) // struct __sk_buff up to ifindex
		binary.NativeEndian.PutUint32(ctx[40:], device)
		opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: ctx}
		verdict, err = p.coll.Programs[program].Run(&opts)
		out = opts.DataOut
		return err
	})
	if err != nil {
		l.t.Fatalf("pass a packet to %s: %v", program, err)
	}
	return verdict, out
}

// device looks at one of a machine's.
func (l *lab) device(ns, name string) (attrs netlink.LinkAttrs) {
	l.t.Helper()
	err := l.do(ns, func() error {
		dev, err := netlink.LinkByName(name)
		if err == nil {
			attrs = *dev.Attrs()
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return attrs
}

func (l *lab) index(ns, device string) uint32 { return uint32(l.device(ns, device).Index) }

// send gives moot_uplink_in the frame, which must be led on, and returns it as it
// goes on.
func (l *lab) send(p *packets, f frame) frame {
	l.t.Helper()
	f.ttl = 64
	verdict, out := l.pass(p, "moot_uplink_in", f.bytes())
	got, err := read(out)
	if err != nil || verdict == verdictDrop || got.dst == f.dst {
		l.t.Fatalf("%s %s > %s: verdict %d, then %s > %s, %v", f.proto, f.src, f.dst, verdict, got.src, got.dst, err)
	}
	return got
}

// answer gives the backend's answer to what send returned to the program that
// sees it, and returns it as it goes on.
func (l *lab) answer(p *packets, to frame, flags uint8, local bool) (verdict uint32, back frame) {
	l.t.Helper()
	program := "moot_uplink_in"
	if local {
		program = "moot_uplink_out"
	}
	f := frame{proto: to.proto, src: to.dst, dst: to.src, flags: flags, ttl: 64}
	verdict, out := l.pass(p, program, f.bytes())
	back, err := read(out)
	if err != nil {
		l.t.Fatal(err)
	}
	return verdict, back
}

// flows reads the connections that are kept.
func flows(t testing.TB, p *packets) map[flowKey]flow {
	t.Helper()
	out := map[flowKey]flow{}
	if err := list(p.coll.Maps["moot_flows"], func(k flowKey, f flow) { out[k] = f }); err != nil {
		t.Fatal(err)
	}
	return out
}
