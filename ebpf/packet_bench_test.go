package ebpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	benchPort    = 20000   // the first of the flows'
	benchPackets = 1 << 18 // a round and side
)

// BenchmarkNodePort has one processor receive packets of 64 bytes as a network
// card's driver does and counts those that reach the backend behind another
// device of the node: forwarded without a Service, by the rules that kube-proxy
// writes for this very Service (testdata, as its proxiers wrote them), and by
// the programs of this package. The sides take turns; the figures are medians,
// of the processor's time. What is no side's own is in it: a packet is made, and
// is dropped by a program as it reaches the other end of a veth pair. How much
// that is show programs that only send back, by tc and in the driver. Checksums
// are as good as checked, by the card.
func BenchmarkNodePort(b *testing.B) {
	for _, flows := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			sides := []string{"forwarding", "bare-tc", "bare-xdp", "nftables", "iptables", "ebpf-xdp", "ebpf-tc", "ebpf-local"}
			var labs []*benchLab
			for _, side := range sides {
				labs = append(labs, newBenchLab(b, side, flows))
			}
			rates := map[string][]float64{}
			for b.Loop() {
				for i, l := range labs {
					rates[sides[i]] = append(rates[sides[i]], l.rate(benchPackets))
				}
			}
			for side, r := range rates {
				slices.Sort(r)
				b.ReportMetric(r[len(r)/2]/1e6, side+"-Mpps")
			}
		})
	}
}

// benchLab is a node, a, that packets come to by eth0 and leave by the same way
// for a backend elsewhere, or by eth1 for one that is local. They are counted at
// the other end of either.
type benchLab struct {
	*lab
	send   *ebpf.Program
	sunk   *ebpf.Map
	device int // a's eth0
}

func newBenchLab(b *testing.B, side string, flows int) *benchLab {
	l := &benchLab{lab: newPins(b)}
	l.tag += side + "-"
	for _, ns := range []string{"out", "a", "b"} {
		l.namespace(ns)
	}
	l.veth("out", "eth0", "a", "eth0")
	l.veth("b", "eth0", "a", "eth1")
	l.in("a", "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.conf.all.send_redirects=0",
		"sysctl -qw net.ipv4.conf.eth0.send_redirects=0", "sysctl -qw net.netfilter.nf_conntrack_checksum=0", "ip link set eth0 address 02:00:00:00:00:02",
		"ip addr add 10.0.0.1/24 dev eth0", "ip addr add 10.1.0.1/24 dev eth1")
	to, dev := "10.0.0.2", "eth0"
	if side == "ebpf-local" {
		to, dev = "10.1.0.2", "eth1"
	}
	l.in("a", "ip neigh add "+to+" lladdr 02:00:00:00:00:03 dev "+dev, "ip route add 10.42.2.0/24 via "+to)
	l.in("out", "ip link set eth0 address 02:00:00:00:00:03")
	l.in("b", "ip link set eth0 address 02:00:00:00:00:03")
	target, pod := netip.MustParseAddrPort("10.0.0.1:30080"), netip.MustParseAddrPort("10.42.2.2:8080")
	var driver *ebpf.Program
	switch side {
	case "forwarding":
		target = pod
	case "bare-tc":
		target = pod
		l.sendBack()
	case "bare-xdp":
		target = pod
		driver = l.program(asm.Instructions{asm.Mov.Imm(asm.R0, xdpTX), asm.Return()})
	case "nftables":
		l.load("nft", "-f", "testdata/kube-proxy.nft")
	case "iptables":
		l.load("iptables-restore", "testdata/kube-proxy.iptables")
	default:
		p := l.programs(side == "ebpf-local")
		b.Cleanup(func() { l.close(p) })
		if side == "ebpf-xdp" {
			driver = p.xdp
		}
	}
	l.sunk = l.array(ebpf.Array, 8)
	sink := l.sink(pod)
	l.attach("out", "eth0", sink)
	l.attach("b", "eth0", sink)
	// With a program of its own a veth device receives as a driver does.
	l.attach("a", "eth0", l.program(asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}))
	l.run("a", "eth0", func(index int) error { l.device = index; return nil })
	l.send = l.sender(target, flows, driver)
	l.rate(max(4*flows, 1000)) // every connection is known
	return l
}

func (l *lab) attach(ns, device string, p *ebpf.Program) {
	l.t.Helper()
	l.run(ns, device, func(index int) error {
		x, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: index})
		if err == nil {
			l.t.Cleanup(func() { _ = x.Close() })
		}
		return err
	})
}

// sendBack has a tc program redirect all that eth0 of node a receives.
func (l *benchLab) sendBack() {
	l.t.Helper()
	l.run("a", "eth0", func(index int) error {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(), //nolint:gosec // an index
		}})
		if err != nil {
			return err
		}
		defer func() { _ = prog.Close() }()
		dev, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		return attachFilter(hook{device: dev, program: "send back"}, prog)
	})
}

// rate returns how many of so many packets arrive in a second of the processor's
// time.
func (l *benchLab) rate(packets int) float64 {
	l.t.Helper()
	const liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	before := l.arrived()
	var took time.Duration
	err := l.do("a", func() error {
		start := threadTime(l.t)
		ctx := struct{ Data, DataEnd, Meta, Ingress, Queue, Egress uint32 }{DataEnd: benchFrame, Ingress: uint32(l.device)} //nolint:gosec // an index
		_, err := l.send.Run(&ebpf.RunOptions{
			Data: make([]byte, benchFrame), Context: ctx, Repeat: uint32(packets), Flags: liveFrames, //nolint:gosec // not so many
		})
		took = threadTime(l.t) - start
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	arrived := l.arrived() - before
	if arrived < packets*9/10 {
		l.t.Errorf("%s: %d of %d packets arrived", l.tag, arrived, packets)
	}
	return float64(arrived) / took.Seconds()
}

func threadTime(t testing.TB) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Error(err)
	}
	return time.Duration(now.Nano())
}

func (l *benchLab) array(kind ebpf.MapType, size uint32) *ebpf.Map {
	l.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: size, MaxEntries: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = m.Close() })
	return m
}

func (l *benchLab) arrived() int {
	l.t.Helper()
	var n uint64
	if err := l.sunk.Lookup(uint32(0), &n); err != nil {
		l.t.Fatal(err)
	}
	return int(n) //nolint:gosec // not so many
}

// sink counts what comes to the address and drops all.
func (l *benchLab) sink(at netip.AddrPort) *ebpf.Program {
	addr := at.Addr().As4()
	port := order(at.Port())
	return l.program(asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, 38),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
		asm.LoadMem(asm.R4, asm.R2, 30, asm.Word),
		asm.JNE.Imm32(asm.R4, int32(binary.NativeEndian.Uint32(addr[:])), "drop"), //nolint:gosec // bits
		asm.LoadMem(asm.R4, asm.R2, 36, asm.Half),
		asm.JNE.Imm(asm.R4, int32(binary.NativeEndian.Uint16(port[:])), "drop"),
		asm.LoadMapValue(asm.R1, l.sunk.FD(), 0), asm.Mov.Imm(asm.R2, 1), asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"), asm.Return(),
	})
}

// benchFrame is 64 bytes on the wire.
const benchFrame = 60

// sender makes each packet that the kernel hands it one to the target, the next
// flow's, and gives it to the driver's program, if there is one, or else to the
// stack. It writes it anew each time: the kernel hands it the same pages again, as
// changed on the way.
func (l *benchLab) sender(to netip.AddrPort, flows int, driver *ebpf.Program) *ebpf.Program {
	f := frame{proto: UDP, src: netip.MustParseAddrPort("10.0.0.9:0"), dst: to, ttl: 64, payload: make([]byte, 18)}.bytes()
	copy(f, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	sum := int32(^binary.BigEndian.Uint16(f[40:]))
	next := l.array(ebpf.Array, 8)
	then := l.array(ebpf.ProgramArray, 4)
	if driver != nil {
		if err := then.Put(uint32(0), driver); err != nil {
			l.t.Fatal(err)
		}
	}
	ins := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, benchFrame),
		asm.JGT.Reg(asm.R4, asm.R3, "drop"),
	}
	for at := 0; at < benchFrame; at += 4 {
		ins = append(ins, asm.StoreImm(asm.R2, int16(at), int64(int32(binary.NativeEndian.Uint32(f[at:]))), asm.Word)) //nolint:gosec // bits
	}
	return l.program(append(ins,
		asm.LoadMapValue(asm.R3, next.FD(), 0), asm.LoadMem(asm.R4, asm.R3, 0, asm.DWord),
		asm.Mov.Reg(asm.R5, asm.R4), asm.Add.Imm(asm.R5, 1),
		asm.JLT.Imm(asm.R5, int32(flows), "count"), asm.Mov.Imm(asm.R5, 0), //nolint:gosec // not so many
		asm.StoreMem(asm.R3, 0, asm.R5, asm.DWord).WithSymbol("count"),
		asm.Add.Imm(asm.R4, benchPort), asm.Mov.Reg(asm.R5, asm.R4), asm.HostTo(asm.BE, asm.R5, asm.Half),
		asm.StoreMem(asm.R2, 34, asm.R5, asm.Half),
		// RFC 1071; the sum of two halves leaves one carry at most.
		asm.Add.Imm(asm.R4, sum), asm.Mov.Reg(asm.R5, asm.R4), asm.RSh.Imm(asm.R5, 16), asm.Add.Reg(asm.R4, asm.R5),
		asm.Xor.Imm(asm.R4, 0xffff), asm.HostTo(asm.BE, asm.R4, asm.Half), asm.StoreMem(asm.R2, 40, asm.R4, asm.Half),
		asm.LoadMapPtr(asm.R2, then.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, xdpPass), asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("drop"), asm.Return()))
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

// program is an XDP program.
func (l *lab) program(ins asm.Instructions) *ebpf.Program {
	l.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Instructions: ins, License: "GPL"})
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
		if p, err = openPackets(Config{Pins: l.pins, XDP: true, Log: discard()}, nil); err != nil {
			return err
		}
		return p.setDevices([]string{"eth0"}, nil)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	put(l.t, p, "moot_addresses", netip.MustParseAddr("10.0.0.1").As16(), uint8(1))
	s := Service{Backends: []Backend{{Addr: netip.MustParseAddrPort("10.42.2.2:8080"), Local: local}}}
	serve(l.t, p, Frontend{anyAddr(0), UDP, Outside}, s, 1, 1)
	return p
}
