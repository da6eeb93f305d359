package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestClosedSocketsLeaveNoWayBack: the map holds what open sockets asked for.
func TestClosedSocketsLeaveNoWayBack(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	four, six := named(t, "10.42.0.2"), named(t, "[fd42::2]")
	want := map[Frontend]Service{}
	for _, p := range []Protocol{TCP, UDP} {
		want[frontend("10.43.0.50:80", p)] = Service{Backends: []Backend{four}}
		want[frontend("[fd43::50]:80", p)] = Service{Backends: []Backend{six}}
	}
	if err := b.Resync(want); err != nil {
		t.Fatal(err)
	}
	mapped(t) // closed
	var open []net.Conn
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"10.43.0.50:80", "[fd43::50]:80"} {
			c, _ := connect(t, network, addr)
			open = append(open, c)
		}
	}
	direct, _ := connect(t, "tcp", four.Addr.String())
	for left := len(open); ; left-- {
		if n := count(t, b, "moot_origins"); n != left {
			t.Errorf("%d ways back for %d sockets", n, left)
		}
		if left == 0 {
			break
		}
		if err := open[left-1].Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(direct.Close(), b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// What a socket sends without connecting goes to one backend, as one flow does
// with kube-proxy; sockets are spread.
func TestDatagramsOfOneSocketStayTogether(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	backends := []Backend{named(t, "10.42.0.2"), named(t, "10.42.0.3")}
	if err := b.Resync(map[Frontend]Service{frontend("10.43.0.50:80", UDP): {Backends: backends}}); err != nil {
		t.Fatal(err)
	}
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.43.0.50:80"))
	took := map[string]int{}
	for range 40 {
		c, err := net.ListenPacket("udp4", ":0") //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		first := ""
		for range 20 {
			if _, err := c.WriteTo([]byte("?"), to); err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			n, from, err := c.ReadFrom(buf)
			if err != nil || from.String() != to.String() {
				t.Fatalf("answer from %v: %v", from, err)
			}
			if first == "" {
				first = string(buf[:n])
			}
			if got := string(buf[:n]); got != first {
				t.Fatalf("%s answered, then %s", first, got)
			}
		}
		took[first]++
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(took) != 2 {
		t.Errorf("40 sockets went to %v", took)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}
