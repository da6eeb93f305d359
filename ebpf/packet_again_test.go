package ebpf

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// client is one of node a's, which every case has for its own.
type client struct {
	*lab
	p      *packets
	front  Frontend
	from   netip.AddrPort
	pods   [2]Backend
	id     uint32
	set    *uint32
	led    frame
	answer func(flags uint8)
}

// serve makes the frontend lead to the pods, 0 or 1.
func (c *client) serve(pods ...int) {
	c.drain(-1, pods...)
}

// drain does, and lets another pod drain.
func (c *client) drain(pod int, pods ...int) {
	var s Service
	for _, i := range pods {
		s.Backends = append(s.Backends, c.pods[i])
	}
	if pod >= 0 {
		s.Draining = append(s.Draining, c.pods[pod])
	}
	*c.set++
	serve(c.t, c.p, c.front, s, c.id, *c.set)
}

// expect sends a packet and says which pod it is to be led to.
func (c *client) expect(what string, flags uint8, seq uint32, pod int) {
	c.t.Helper()
	c.led = c.send(c.p, frame{proto: c.front.Protocol, src: c.from, dst: c.front.Addr, flags: flags, seq: seq})
	if c.led.dst != c.pods[pod].Addr {
		c.t.Errorf("%s is led to %s, want %s", what, c.led.dst, c.pods[pod].Addr)
	}
}

func TestNewConnectionsOnOldOnesPorts(t *testing.T) {
	l := newLab(t, false)
	p := l.open(false, false, nil)
	defer l.close(p)
	cases := map[string]struct {
		proto Protocol
		steps func(c *client)
	}{
		"a SYN again, as nobody answers": {TCP, func(c *client) {
			c.serve(0, 1)
			c.expect("the SYN again", syn, 1, 0)
		}},
		"a SYN again, its backend is gone": {TCP, func(c *client) {
			c.serve(1)
			c.expect("the SYN again", syn, 1, 1)
		}},
		"a SYN again, its backend is gone but has answered": {TCP, func(c *client) {
			c.answer(syn | ack)
			c.serve(1)
			c.expect("the SYN again", syn, 1, 0)
			c.expect("the ACK", ack, 2, 0)
		}},
		"another SYN, nobody has answered the first": {TCP, func(c *client) {
			c.serve(1)
			c.expect("the second", syn, 1<<20, 1)
		}},
		"another SYN on an open connection": {TCP, func(c *client) {
			c.answer(syn | ack)
			c.expect("the ACK", ack, 2, 0)
			c.serve(1)
			c.expect("data", ack, 2, 0)
			c.expect("the second", syn, 3, 1)
		}},
		"another SYN on a half-closed connection": {TCP, func(c *client) {
			c.answer(syn | ack)
			c.expect("the FIN", fin|ack, 2, 0)
			c.serve(1)
			c.expect("an ACK", ack, 3, 0)
			c.expect("the second", syn, 1<<31, 1)
		}},
		"a SYN on a closed connection": {TCP, func(c *client) {
			c.answer(syn | ack)
			c.expect("the FIN", fin|ack, 2, 0)
			c.answer(fin | ack)
			c.serve(1)
			c.expect("the last ACK", ack, 3, 0)
			c.expect("the second", syn, 1, 1)
		}},
		"a SYN after the backend's reset": {TCP, func(c *client) {
			c.answer(rst | ack)
			c.serve(1)
			c.expect("the second", syn, 1, 1)
		}},
		"a SYN after the client's reset": {TCP, func(c *client) {
			c.answer(syn | ack)
			c.expect("the reset", rst, 2, 0)
			c.serve(1)
			c.expect("the second", syn, 1, 1)
		}},
		"a datagram, its backend is gone": {UDP, func(c *client) {
			c.answer(0)
			c.expect("the second", 0, 0, 0)
			c.serve(1)
			c.expect("the third", 0, 0, 1)
		}},
		"a datagram, its backend drains and goes": {UDP, func(c *client) {
			c.drain(0, 1)
			c.expect("the second", 0, 0, 0)
			c.answer(0)
			c.expect("the third", 0, 0, 0)
			c.serve(1)
			c.expect("the fourth", 0, 0, 1)
		}},
		"a SYN again, its backend drains": {TCP, func(c *client) {
			c.drain(0, 1)
			c.expect("the SYN again", syn, 1, 1)
		}},
	}
	set, id := uint32(0), uint32(0)
	for name, tc := range cases {
		for family, familyName := range families {
			for _, local := range []bool{false, true} {
				place := map[bool]string{false: "elsewhere", true: "here"}[local]
				t.Run(name+"/"+familyName+" "+place, func(t *testing.T) {
					id++
					lab := *l
					lab.t = t
					c := &client{lab: &lab, p: p, set: &set, id: id}
					c.from = netip.AddrPortFrom(netip.MustParseAddr(addrOf["out"][family]), uint16(40000+id))
					c.front = Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), uint16(1000+id)), tc.proto, Outside}
					first := map[bool]string{false: "podb", true: "poda"}[local]
					c.pods = [2]Backend{onPod(first, family), onPod(first, family)}
					c.pods[1].Addr = netip.AddrPortFrom(c.pods[1].Addr.Addr().Next(), podPort)
					c.answer = func(flags uint8) {
						t.Helper()
						if _, back := c.lab.answer(p, c.led, flags, local); back.src != c.front.Addr || back.dst != c.from {
							t.Fatalf("the answer goes on as %s > %s", back.src, back.dst)
						}
					}
					before := len(flows(t, p))
					c.serve(0)
					c.expect("the first", syn, 1, 0)
					old := c.led
					tc.steps(c)
					c.answer(0)
					if n := len(flows(t, p)) - before; n != 2 {
						t.Errorf("%d entries are kept of one connection, want both ways of it", n)
					}
					if c.led.dst == old.dst {
						return
					}
					// What its old backend may still say is no answer any more.
					if verdict, back := c.lab.answer(p, old, ack, local); verdict != verdictNext || back.src != old.dst {
						t.Errorf("an answer of the old backend goes on as %s > %s, verdict %d", back.src, back.dst, verdict)
					}
				})
			}
		}
	}
}

// A packet that another CPU saw later than this one read its clock ends nothing.
func TestConnectionsSeenLaterThanNowGoOn(t *testing.T) {
	l := newLab(t, false)
	p := l.open(false, false, nil)
	defer l.close(p)
	front := Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][0]), 80), TCP, Outside}
	from := netip.MustParseAddrPort("10.0.0.9:40000")
	serve(t, p, front, Service{Backends: []Backend{onPod("podb", 0)}}, 1, 1)
	l.answer(p, l.send(p, frame{proto: TCP, src: from, dst: front.Addr, flags: syn}), syn|ack, false)
	for key, f := range flows(t, p) {
		f.Seen = monotonic(t) + uint64(time.Minute)
		put(t, p, "moot_flows", key, f)
	}
	serve(t, p, front, Service{Backends: []Backend{onPod("poda", 0)}}, 1, 2)
	if led := l.send(p, frame{proto: TCP, src: from, dst: front.Addr, flags: ack}); led.dst != onPod("podb", 0).Addr {
		t.Errorf("the open connection is led to %s", led.dst)
	}
}

// A connection that was quiet for so long that its port is another's takes
// nothing from that one when it is forgotten.
func TestForgottenConnectionsLeaveTheirPortsNewOwner(t *testing.T) {
	l := newLab(t, false)
	p := l.open(false, false, nil)
	defer l.close(p)
	front := Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][0]), 80), TCP, Outside}
	serve(t, p, front, Service{Backends: []Backend{onPod("podb", 0)}}, 1, 1)
	first := frame{proto: TCP, src: netip.MustParseAddrPort("10.0.0.9:40000"), dst: front.Addr, flags: syn, seq: 1}
	l.send(p, first)
	other := netip.MustParseAddr("10.0.0.8").As16()
	var taken flowKey
	for key, f := range flows(t, p) {
		if f.Flags&flowReply != 0 {
			taken, f.Dst = key, other
		} else {
			f.Seen = 0
		}
		put(t, p, "moot_flows", key, f)
	}
	first.seq = 2
	l.send(p, first)
	if f, kept := flows(t, p)[taken]; !kept || f.Dst != other {
		t.Errorf("the new owner's entry: %+v, there %t", f, kept)
	}
}

func monotonic(t testing.TB) uint64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return uint64(now.Nano())
}

func TestAffinityOfPacketsRunsOut(t *testing.T) {
	l := newLab(t, false)
	p := l.open(false, false, nil)
	defer l.close(p)
	const id = 1
	pods := []Backend{onPod("podb", 0), onPod("podb", 0)}
	pods[1].Addr = netip.AddrPortFrom(pods[1].Addr.Addr().Next(), podPort)
	from := netip.MustParseAddrPort("10.0.0.9:40000")
	for _, proto := range []Protocol{TCP, UDP} {
		front := Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][0]), 80), proto, Outside}
		serve(t, p, front, Service{Backends: pods, Affinity: 10 * time.Second}, id, 1)
		next := func() netip.AddrPort { // each a connection of its own
			from = netip.AddrPortFrom(from.Addr(), from.Port()+1)
			return l.send(p, frame{proto: proto, src: from, dst: front.Addr, flags: syn}).dst
		}
		key := affinityKey{Client: from.Addr().As16(), ID: id}
		_ = p.coll.Maps["moot_affinity"].Delete(key) // of the protocol before
		home := next()                               // by the table
		other := pods[0].Addr
		if other == home {
			other = pods[1].Addr
		}
		now := monotonic(t)
		for what, tc := range map[string]struct {
			last netip.AddrPort
			seen uint64
			want netip.AddrPort
		}{
			"a moment ago":           {other, now, other},
			"just within its time":   {other, now - uint64(9*time.Second), other},
			"by a clock ahead":       {other, now + uint64(time.Minute), other},
			"longer ago":             {other, now - uint64(11*time.Second), home},
			"a backend that is gone": {netip.MustParseAddrPort("10.42.2.99:8080"), now, home},
		} {
			put(t, p, "moot_affinity", key, affinity{Addr: tc.last.Addr().As16(), Port: order(tc.last.Port()), Seen: tc.seen})
			if got := next(); got != tc.want {
				t.Errorf("%s: last with %s %s: led to %s, want %s", proto, tc.last, what, got, tc.want)
			}
			var is affinity
			if err := p.coll.Maps["moot_affinity"].Lookup(key, &is); err != nil || is.Addr != tc.want.Addr().As16() || is.Seen < now {
				t.Errorf("%s: last with %s %s: then noted %+v, %v", proto, tc.last, what, is, err)
			}
		}
	}
}

// A client whose SYN was led to a node that died in this moment is led to another
// backend when it sends it again, a second later by its own clock.
func TestClientsOfDeadBackendConnectElsewhere(t *testing.T) {
	everywhere(t, func(t *testing.T, l *lab, p *packets) {
		var fronts [len(families)]Frontend
		for family, name := range families {
			fronts[family] = Frontend{netip.AddrPortFrom(netip.MustParseAddr(addrOf["lb"][family]), 80), TCP, Outside}
			id := uint32(family + 1)
			serve(t, p, fronts[family], Service{Backends: []Backend{onPod("podb", family)}}, id, id)
			// The nodes know each other's link addresses: while one is asked for, the
			// SYN waits in a queue, and a client on the same kernel (6.1) sends no other.
			conn, _, who, _, err := l.hello(fronts[family].Addr)
			if err != nil || who != "podb" {
				t.Fatalf("%s: before: %s, %v", name, who, err)
			}
			_ = conn.Close()
		}
		l.in("b", "ip link set eth0 down")
		for family, name := range families {
			front, id := fronts[family], uint32(family+1)
			before := len(flows(t, p))
			start := time.Now()
			type result struct {
				conn net.Conn
				who  string
				err  error
			}
			done := make(chan result, 1)
			go func() {
				conn, _, who, _, err := l.hello(front.Addr)
				done <- result{conn, who, err}
			}()
			for len(flows(t, p)) == before { // its SYN went to the dead one
				if time.Since(start) > patience {
					t.Fatal("no SYN came")
				}
			}
			serve(t, p, front, Service{Backends: []Backend{onPod("poda", family)}}, id, id+10)
			changed := time.Since(start)
			r := <-done
			took := time.Since(start)
			// A client waits a second, then twice as long each time: on a slow
			// machine some of its SYNs went before the change.
			if r.err != nil || r.who != "poda" || took > 2*changed+2*time.Second {
				t.Errorf("%s: %s answered after %v, changed after %v, %v", name, r.who, took, changed, r.err)
				continue
			}
			t.Logf("%s: served after %v", name, took)
			_ = r.conn.Close()
		}
	})
}
