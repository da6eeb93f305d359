package sched

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// echo is a server that answers each line with the same line, and counts lines.
type echo struct {
	addr  netip.AddrPort
	mu    sync.Mutex
	lines int
}

func startEcho(t *testing.T) *echo {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{addr: netip.MustParseAddrPort(listener.Addr().String())}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { e.serve(conn) })
		}
	})
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		wait.Wait()
	})
	return e
}

func (e *echo) serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the client may have reset it
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		e.mu.Lock()
		e.lines++
		e.mu.Unlock()
		if _, err := fmt.Fprintln(conn, scanner.Text()); err != nil {
			return
		}
	}
}

func (e *echo) seen() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lines
}

func mustOpen(t *testing.T, term uint64, target netip.AddrPort) *gate {
	t.Helper()
	return mustOpenWith(t, term, target, time.Hour)
}

func mustOpenWith(t *testing.T, term uint64, target netip.AddrPort, limit time.Duration) *gate {
	t.Helper()
	p, err := newPulse(limit)
	if err != nil {
		t.Fatal(err)
	}
	g, err := openGate(t.Context(), term, target, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.cut)
	return g
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // reset by the gate in most tests
	return conn
}

func say(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || got != line+"\n" {
		t.Fatalf("got %q, %v; want %q", got, err, line)
	}
}

func TestGateForwards(t *testing.T) {
	server := startEcho(t)
	g := mustOpen(t, 1, server.addr)
	first, second := dial(t, g.listener.Addr().String()), dial(t, g.listener.Addr().String())
	say(t, first, "one")
	say(t, second, "two")
	say(t, first, "three")
	// The end of one direction passes through and the answer still arrives.
	if _, err := fmt.Fprintln(second, "last"); err != nil {
		t.Fatal(err)
	}
	if err := second.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(second); err != nil || string(rest) != "last\n" {
		t.Errorf("got %q, %v after closing one direction", rest, err)
	}
}

func TestCutGateLetsNothingThrough(t *testing.T) {
	server := startEcho(t)
	g := mustOpen(t, 2, server.addr)
	addr := g.listener.Addr().String()
	conns := make([]net.Conn, 20)
	for i := range conns {
		conns[i] = dial(t, addr)
		say(t, conns[i], "before")
	}
	g.cut()
	seen := server.seen()
	for _, conn := range conns {
		// A writer that hung and wakes now is refused, and so is a new connection.
		_, writeErr := fmt.Fprintln(conn, "after")
		_, readErr := conn.Read(make([]byte, 1))
		if writeErr == nil && readErr == nil {
			t.Error("a connection of the term still works")
		}
	}
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection after the cut: %v, %v", conn, err)
	}
	if server.seen() != seen {
		t.Errorf("%d lines arrived after the cut", server.seen()-seen)
	}
	// The next term's gate is elsewhere, whatever port it gets.
	if next := mustOpen(t, 3, server.addr); next.listener.Addr().(*net.TCPAddr).IP.Equal(g.listener.Addr().(*net.TCPAddr).IP) {
		t.Error("two terms share an address")
	}
	g.cut() // a second time does nothing
}

// What a process that stood still sends when it wakes does not get through,
// even before anything else has noticed.
func TestGateAfterStandingStill(t *testing.T) {
	server := startEcho(t)
	g := mustOpenWith(t, 5, server.addr, time.Minute)
	var away atomic.Int64
	g.pulse.clock = func() (time.Duration, error) {
		now, err := sinceBoot()
		return now + time.Duration(away.Load()), err
	}
	conns := []net.Conn{dial(t, g.listener.Addr().String()), dial(t, g.listener.Addr().String())}
	for _, conn := range conns {
		say(t, conn, "before")
	}
	away.Store(int64(50 * time.Second))
	say(t, conns[0], "short enough")
	away.Store(int64(70 * time.Second))
	seen := server.seen()
	for _, conn := range conns {
		_, writeErr := fmt.Fprintln(conn, "after")
		if _, err := conn.Read(make([]byte, 1)); writeErr == nil && err == nil {
			t.Error("a connection still works")
		}
	}
	// Nor later, when all is in order again.
	away.Store(0)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", g.listener.Addr().String())
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close() // reset already
	}
	if err == nil {
		t.Error("a new connection works")
	}
	if server.seen() != seen {
		t.Errorf("%d lines arrived", server.seen()-seen)
	}
}

func TestGateWithoutServer(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := netip.MustParseAddrPort(listener.Addr().String())
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	g := mustOpen(t, 4, target)
	if _, err := dial(t, g.listener.Addr().String()).Read(make([]byte, 1)); err == nil {
		t.Error("read something from a server that is not there")
	}
}

func TestGateAddr(t *testing.T) {
	tests := map[uint64]string{1: "127.64.0.1", 256: "127.64.1.0", 65536: "127.65.0.0", maxTerm: "127.127.255.255"}
	for term, want := range tests {
		if got := gateAddr(term).String(); got != want {
			t.Errorf("term %d at %s, want %s", term, got, want)
		}
	}
}
