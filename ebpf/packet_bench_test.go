package ebpf

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

const (
	benchFlows   = 64
	benchPackets = 5000 // a flow
)

// BenchmarkNodePort has the kernel send packets of 64 bytes into a node and
// counts those that reach the backend behind another device of the node, one
// CPU doing all: forwarded without a Service, by the rules that kube-proxy writes
// for this very Service (testdata, as its proxiers wrote them), and by the
// programs of this package. Sender and sink are the same for all and are part of
// the time.
func BenchmarkNodePort(b *testing.B) {
	for _, mode := range []string{"forwarding", "nftables", "iptables", "ebpf-remote", "ebpf-local"} {
		b.Run(mode, func(b *testing.B) {
			l := newBenchLab(b)
			target := netip.MustParseAddrPort("10.0.0.1:30080")
			switch mode {
			case "forwarding":
				target = netip.MustParseAddrPort("10.42.2.2:8080")
			case "nftables":
				l.load("nft", "-f", "testdata/kube-proxy.nft")
			case "iptables":
				l.load("iptables-restore", "testdata/kube-proxy.iptables")
			default:
				p := l.programs(mode == "ebpf-local")
				defer l.close(p)
			}
			frames := benchFrames(target)
			send := l.senders(frames)
			l.blast(send, frames[0], 1000) // every connection is known
			var took time.Duration
			sent, arrived := 0, 0
			for b.Loop() {
				before, start := l.sunk(), time.Now()
				l.blast(send, frames[0], benchPackets)
				took += time.Since(start)
				sent, arrived = sent+benchFlows*benchPackets, arrived+l.sunk()-before
			}
			b.ReportMetric(float64(arrived)/took.Seconds(), "packets/s")
			b.ReportMetric(100*float64(arrived)/float64(sent), "%arrived")
			if arrived < sent/2 {
				b.Errorf("%d of %d packets arrived", arrived, sent)
			}
		})
	}
}

// newBenchLab is: out eth0 ── a eth0, a eth1 ── b eth0.
func newBenchLab(b *testing.B) *lab {
	l := newPins(b)
	for _, ns := range []string{"out", "a", "b"} {
		l.namespace(ns)
	}
	l.veth("out", "eth0", "a", "eth0")
	l.veth("b", "eth0", "a", "eth1")
	l.in("out", "ip link set eth0 address 02:00:00:00:00:01")
	l.in("a", "sysctl -qw net.ipv4.ip_forward=1", "ip link set eth0 address 02:00:00:00:00:02",
		"ip addr add 10.0.0.1/24 dev eth0", "ip addr add 10.1.0.1/24 dev eth1",
		"ip neigh add 10.1.0.2 lladdr 02:00:00:00:00:03 dev eth1", "ip route add 10.42.2.0/24 via 10.1.0.2")
	l.in("b", "ip link set eth0 address 02:00:00:00:00:03")
	// Received by a driver's poll, as from a network card, and dropped as they
	// reach the other end, so that neither end takes more time than it must.
	l.run("a", "eth0", func(index int) error {
		_, err := link.AttachXDP(link.XDPOptions{Program: l.verdict(ebpf.XDP, 2), Interface: index})
		return err
	})
	l.run("b", "eth0", func(index int) error {
		dev, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		return attachFilter(hook{device: dev, program: "drop"}, l.verdict(ebpf.SchedCLS, 2))
	})
	return l
}

func (l *lab) run(ns, device string, f func(index int) error) {
	l.t.Helper()
	err := l.do(ns, func() error {
		dev, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return f(dev.Attrs().Index)
	})
	if err != nil {
		l.t.Fatalf("%s in %s: %v", device, ns, err)
	}
}

// verdict is a program that says the same of every packet.
func (l *lab) verdict(kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	return l.program(kind, asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()})
}

func (l *lab) program(kind ebpf.ProgramType, ins asm.Instructions) *ebpf.Program {
	l.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, Instructions: ins, License: "GPL"})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = prog.Close() })
	return prog
}

func (l *lab) load(name string, args ...string) {
	l.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		l.t.Skip(err)
	}
	for _, a := range args {
		name += " " + a
	}
	l.in("a", name)
}

func (l *lab) programs(local bool) *packets {
	var p *packets
	err := l.do("a", func() (err error) {
		if p, err = openPackets(l.pins, nil, false, discard()); err != nil {
			return err
		}
		return p.setDevices([]string{"eth0", "eth1"}, nil)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	put(l.t, p, "moot_addresses", netip.MustParseAddr("10.0.0.1").As16(), uint8(1))
	s := Service{Backends: []Backend{{Addr: netip.MustParseAddrPort("10.42.2.2:8080"), Local: local}}}
	serve(l.t, p, Frontend{anyAddr(0), UDP, Outside}, s, 1, 1)
	return p
}

// senders are programs that each put one frame onto out's device. They write
// it anew each time: the kernel sends the same pages again, as changed on the way.
func (l *lab) senders(frames [][]byte) (progs []*ebpf.Program) {
	var index int
	l.run("out", "eth0", func(i int) error { index = i; return nil })
	for _, f := range frames {
		ins := asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, int32(len(f))),
			asm.JGT.Reg(asm.R4, asm.R3, "drop"),
		}
		for at := 0; at < len(f); at += 4 {
			ins = append(ins, asm.StoreImm(asm.R2, int16(at), int64(int32(binary.LittleEndian.Uint32(f[at:]))), asm.Word))
		}
		progs = append(progs, l.program(ebpf.XDP, append(ins,
			asm.Mov.Imm(asm.R1, int32(index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"), asm.Return())))
	}
	return progs
}

// blast has each sender send so many times.
func (l *lab) blast(senders []*ebpf.Program, frame []byte, times uint32) {
	l.t.Helper()
	const liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	err := l.do("out", func() error {
		for _, s := range senders {
			ctx := struct{ Data, DataEnd, Meta, Ingress, Queue, Egress uint32 }{DataEnd: uint32(len(frame))}
			if _, err := s.Run(&ebpf.RunOptions{Data: frame, Context: ctx, Repeat: times, Flags: liveFrames}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) sunk() int {
	n, err := strconv.Atoi(strings.TrimSpace(l.in("b", "cat /sys/class/net/eth0/statistics/rx_packets")))
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// benchFrames are UDP packets of 64 bytes with checksums, each from another port.
func benchFrames(to netip.AddrPort) [][]byte {
	var out [][]byte
	for i := range benchFlows {
		out = append(out, udpFrame(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), uint16(20000+i)), to, make([]byte, 18)))
	}
	return out
}

func udpFrame(from, to netip.AddrPort, payload []byte) []byte {
	src, dst := from.Addr().As4(), to.Addr().As4()
	f := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	ip = append(append(ip, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, 17, udp[4], udp[5])
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))
	return append(append(f, ip...), udp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 > 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
