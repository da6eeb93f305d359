package ebpf

import (
	"net/netip"
	"testing"
)

// A client whose way to the node changes is answered by the device that it comes
// in by now, also over a connection from before: the other may be without a link.
func TestAnswersFollowTheirClients(t *testing.T) {
	l := newLab(t, false)
	p := shopfront(t, l)
	defer l.close(p)
	l.in("a", "ip link add eth1 type bridge")
	before, now := l.index("a", "eth0"), l.index("a", "eth1")
	for family, name := range families {
		for _, proto := range []Protocol{TCP, UDP} {
			in := frame{
				proto: proto, flags: syn, ttl: 64,
				src: netip.AddrPortFrom(netip.MustParseAddr(addrOf["out"][family]), 40000),
				dst: netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 80),
			}
			led := l.send(p, in)
			l.answer(p, led, syn|ack, false)
			in.flags = ack
			for _, device := range []uint32{before, now, before} {
				if verdict, out := l.passBy(p, device, "moot_uplink_in", in.bytes()); verdict != verdictRedirect {
					t.Errorf("%s %s: verdict %d, %v", name, proto, verdict, out)
				}
				n := 0
				for key, f := range flows(t, p) {
					if key.Proto != uint8(proto) || key.Src != in.src.Addr().As16() && key.Src != led.dst.Addr().As16() {
						continue
					}
					if n++; f.Ifindex != device {
						t.Errorf("%s %s, come in by %d: %v is answered by %d", name, proto, device, key, f.Ifindex)
					}
				}
				if n != 2 {
					t.Errorf("%s %s: %d entries of one connection", name, proto, n)
				}
			}
		}
	}
}
