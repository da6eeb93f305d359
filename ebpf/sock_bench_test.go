package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConnectLatency measures connect() on loopback, directly and through a
// Service, in turns, with more and more Services beside it; and how long a change
// of backends takes until a connect goes to the new one. It asserts no time.
//
//	go test -run TestConnectLatency -v ./ebpf
func TestConnectLatency(t *testing.T) {
	if testing.Short() {
		t.Skip("a measurement")
	}
	cfg, in := inNode(t)
	if !in {
		return
	}
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	var bare []time.Duration
	for range 20000 {
		bare = append(bare, connectTime(t, one.Addr))
	}
	t.Logf("no programs: direct %s", figures(bare))
	b := openNode(t, cfg)
	f := frontend("10.43.0.50:80", UDP)
	services := map[Frontend]Service{f: {Backends: []Backend{one}}}
	for _, n := range []int{1, 100, 1000, 10000, 30000} {
		for i := len(services); i < n; i++ {
			addr := netip.AddrFrom4([4]byte{10, 44, byte(i >> 8), byte(i)})
			services[Frontend{Addr: netip.AddrPortFrom(addr, 80), Protocol: TCP}] = Service{Backends: []Backend{one, two}}
		}
		begin := time.Now()
		if err := b.Resync(services); err != nil {
			t.Fatal(err)
		}
		resync := time.Since(begin)
		var direct, through, change []time.Duration
		for range 20000 {
			direct = append(direct, connectTime(t, one.Addr))
			through = append(through, connectTime(t, f.Addr))
		}
		for i := range 200 {
			begin := time.Now()
			if err := b.Apply(map[Frontend]Service{f: {Backends: []Backend{[]Backend{one, two}[i%2]}}}, nil); err != nil {
				t.Fatal(err)
			}
			connectTime(t, f.Addr)
			change = append(change, time.Since(begin))
		}
		t.Logf("%5d services: direct %s, Service %s, change to first connect %s, resync of all %v",
			n, figures(direct), figures(through), figures(change), resync.Round(time.Millisecond))
		if err := b.Apply(map[Frontend]Service{f: services[f]}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// connectTime connects a UDP socket, which sends no packet: what is left is the
// route look-up and our program.
func connectTime(t *testing.T, to netip.AddrPort) time.Duration {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	begin := time.Now()
	err = unix.Connect(fd, sa)
	took := time.Since(begin)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	return took
}

func figures(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("p50 %v p99 %v", d[len(d)/2], d[len(d)*99/100])
}
