package ebpf

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lab is one link with a client and two nodes on it, each node with a pod, and a
// VXLAN device between the nodes. Reverse path filters are strict.
//
//	out 10.0.0.9 ──┬── a 10.0.0.1 ── pod 10.42.1.2
//	               └── b 10.0.0.2 ── pod 10.42.2.2
type lab struct {
	t    testing.TB
	tag  string
	pins string

	overlay bool
	xdp     bool // eth0 of node a's driver leads packets on
}

// Where things are, by family: IPv4, IPv6.
var (
	addrOf = map[string][2]string{
		"out": {"10.0.0.9", "fd10::9"}, "a": {"10.0.0.1", "fd10::1"}, "b": {"10.0.0.2", "fd10::2"},
		"poda": {"10.42.1.2", "fd42:1::2"}, "podb": {"10.42.2.2", "fd42:2::2"},
		"lb": {"192.0.2.80", "fd99::80"},
	}
	families = [2]string{"IPv4", "IPv6"}
)

func newPins(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Skipf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	// The root of a bpffs has files of the kernel's.
	l := &lab{t: t, tag: fmt.Sprintf("moot-%d-", os.Getpid()), pins: filepath.Join(mount, "moot")}
	if err := os.Mkdir(l.pins, 0o700); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) namespace(ns string) {
	l.sh("ip netns add " + l.tag + ns)
	l.t.Cleanup(func() { l.sh("ip netns del " + l.tag + ns) })
	l.in(ns, "ip link set lo up")
	for _, key := range []string{
		"net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1",
		"net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0",
	} {
		l.in(ns, "sysctl -qw "+key)
	}
}

func newLab(t testing.TB, overlay bool) *lab {
	t.Helper()
	l := newPins(t)
	for _, ns := range []string{"lan", "out", "a", "b", "poda", "podb"} {
		l.namespace(ns)
	}
	l.in("lan", "ip link add lan type bridge", "ip link set lan up")
	for _, ns := range []string{"out", "a", "b"} {
		l.veth("lan", "port-"+ns, ns, "eth0")
		l.in("lan", "ip link set port-"+ns+" master lan")
		l.in(ns, "ip addr add "+addrOf[ns][0]+"/24 dev eth0", "ip addr add "+addrOf[ns][1]+"/64 dev eth0 nodad")
	}
	l.in("out", "ip route add "+addrOf["lb"][0]+" via "+addrOf["a"][0], "ip route add "+addrOf["lb"][1]+" via "+addrOf["a"][1])
	l.node("a", "1", "b", "2", overlay)
	l.node("b", "2", "a", "1", overlay)
	return l
}

// node gives the node forwarding, its pod and the way to the other node's.
func (l *lab) node(ns, number, other, otherNumber string, overlay bool) {
	l.in(ns, "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv6.conf.all.forwarding=1")
	l.veth(ns, "pod", "pod"+ns, "eth0")
	l.in(ns, "ip addr add 10.42."+number+".1/24 dev pod", "ip addr add fd42:"+number+"::1/64 dev pod nodad")
	l.in("pod"+ns, "ip addr add "+addrOf["pod"+ns][0]+"/24 dev eth0", "ip addr add "+addrOf["pod"+ns][1]+"/64 dev eth0 nodad",
		"ip route add default via 10.42."+number+".1", "ip route add default via fd42:"+number+"::1")
	via := [2]string{" via " + addrOf[other][0], " via " + addrOf[other][1]}
	if overlay {
		mac := "02:00:00:00:00:0"
		l.in(ns, "ip link add vx type vxlan id 7 dstport 8472 nolearning local "+addrOf[ns][0]+" dev eth0",
			"ip link set vx address "+mac+number+" up",
			"ip addr add 10.42."+number+".0/32 dev vx", "ip addr add fd42:"+number+"::/128 dev vx nodad",
			"bridge fdb append "+mac+otherNumber+" dev vx dst "+addrOf[other][0],
			"ip neigh add 10.42."+otherNumber+".0 lladdr "+mac+otherNumber+" dev vx",
			"ip neigh add fd42:"+otherNumber+":: lladdr "+mac+otherNumber+" dev vx")
		via = [2]string{" via 10.42." + otherNumber + ".0 dev vx onlink", " via fd42:" + otherNumber + ":: dev vx onlink"}
	}
	l.in(ns, "ip route add 10.42."+otherNumber+".0/24"+via[0], "ip route add fd42:"+otherNumber+"::/64"+via[1])
}

func (l *lab) veth(ns, name, peerNS, peer string) {
	l.sh(fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", name, l.tag+ns, peer, l.tag+peerNS))
	l.in(ns, "ip link set "+name+" up")
	l.in(peerNS, "ip link set "+peer+" up")
}

func (l *lab) sh(command string) string {
	l.t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func (l *lab) in(ns string, commands ...string) string {
	l.t.Helper()
	out := ""
	for _, c := range commands {
		out += l.sh("ip netns exec " + l.tag + ns + " " + c)
	}
	return out
}

// do runs f on a thread in the namespace. Sockets that f opens stay in it.
func (l *lab) do(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		done <- func() error {
			file, err := os.Open("/run/netns/" + l.tag + ns)
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// open loads the programs on node a as a daemon does when it starts.
func (l *lab) open(noTCX, overlay bool, shared map[string]*ebpf.Map) *packets {
	l.t.Helper()
	l.overlay = overlay
	var p *packets
	err := l.do("a", func() (err error) {
		p, err = openPackets(Config{Pins: l.pins, NoTCX: noTCX, XDP: l.xdp, Log: discard()}, shared)
		if err != nil {
			return err
		}
		var over []string
		if overlay {
			over = []string{"vx"}
		}
		if l.xdp { // a veth device is refused; this one's packets have checksums
			p.unfit = func(netlink.Link, []netlink.Link) error { return nil }
		}
		return p.setDevices([]string{"eth0"}, over)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, own := range addrOf["a"] {
		put(l.t, p, "moot_addresses", netip.MustParseAddr(own).As16(), uint8(1))
	}
	return p
}

// reopen is a daemon that ends and starts again, with the shared maps as pinned.
func (l *lab) reopen(p *packets) {
	l.t.Helper()
	keep := map[string]*ebpf.Map{}
	for name, m := range p.coll.Maps {
		if slices.Contains(ownMaps[:], name) {
			continue
		}
		clone, err := m.Clone()
		if err != nil {
			l.t.Fatal(err)
		}
		defer func() { _ = clone.Close() }()
		keep[name] = clone
	}
	p.close()
	*p = *l.open(p.noTCX, l.overlay, keep)
}

// close is the end of the test: nothing of ours may stay in the namespace.
func (l *lab) close(p *packets) {
	l.t.Helper()
	p.close()
	if err := l.do("a", func() error { return removePackets(l.pins) }); err != nil {
		l.t.Error(err)
	}
	left, err := os.ReadDir(l.pins)
	if err != nil || len(left) > 0 {
		l.t.Errorf("pins that stay: %v, %v", left, err)
	}
	l.noXDP()
	if out := l.in("a", "tc qdisc show dev eth0"); strings.Contains(out, "clsact") {
		l.t.Errorf("qdiscs that stay:\n%s", out)
	}
}

// noXDP waits until no XDP program is attached: the kernel lets go of a link a
// moment after its pin.
func (l *lab) noXDP() {
	l.t.Helper()
	for start := time.Now(); ; {
		out := l.in("a", "ip link show dev eth0")
		if !strings.Contains(out, "prog/xdp") {
			return
		}
		if time.Since(start) > patience {
			l.t.Fatalf("an XDP program stays:\n%s", out)
		}
	}
}

func put(t testing.TB, p *packets, name string, key, value any) {
	t.Helper()
	if err := p.coll.Maps[name].Put(key, value); err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
}

func anyAddr(family int) netip.AddrPort {
	if family == 0 {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), nodePort)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), nodePort)
}

// serve writes a frontend as the balancer does; set is new with each change.
func serve(t testing.TB, p *packets, f Frontend, s Service, id, set uint32) {
	t.Helper()
	svc := service{ID: id, Set: set, Affinity: affinitySeconds(s.Affinity)}
	if s.Drop {
		svc.Flags |= serviceDrop
	}
	for _, src := range s.Sources {
		svc.Flags |= serviceSources
		put(t, p, "moot_sources", sourceOf(id, src), uint8(1))
	}
	m := p.coll.Maps["moot_members"]
	var old []memberKey
	if err := list(m, func(key memberKey, _ uint8) {
		if key.ID == id {
			old = append(old, key)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := deleteAll(m, old); err != nil {
		t.Fatal(err)
	}
	slots := slotsOf(s)
	if len(slots) <= near {
		svc.Flags |= serviceNear
	} else {
		for i, to := range slots {
			put(t, p, "moot_slots", slotKey{set, uint32(i)}, to)
		}
	}
	for _, to := range slices.Concat(slots, drainingOf(f, s, slots)) {
		put(t, p, "moot_members", memberKey{ID: id, Addr: to.Addr, Port: to.Port}, uint8(to.Flags))
	}
	parts, size := tableOf(slots)
	for i, part := range parts {
		put(t, p, "moot_tables", slotKey{set, uint32(i)}, part)
	}
	svc.Slots = size
	put(t, p, "moot_services", keyOf(f), valueOf(svc, slots))
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
