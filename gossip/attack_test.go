package gossip_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mootkube/moot/gossip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logLines counts the lines of a log.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logLines) matching(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

// pair is two members; what the first logs is kept.
func pair(t *testing.T) (a *authority, n1, n2 *machine, log *logLines) {
	t.Helper()
	a, log = newAuthority(t), &logLines{}
	n1, n2 = newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	n1.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	n1.start()
	n2.start(n1.addr)
	eventually(t, "cluster forms", func() bool { return n1.alive() == 2 && n2.alive() == 2 })
	return a, n1, n2, log
}

func (m *machine) dial() net.Conn {
	m.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(m.t.Context(), "tcp", m.addr.String())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = c.Close() })
	return c
}

// endsQuietly reads until the other end closes, and returns what it said.
func endsQuietly(t *testing.T, c net.Conn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(io.LimitReader(c, 1<<20))
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Error("the connection is not closed")
	}
	return said
}

// speaks reports whether a cluster still works: a change gets across.
func speaks(t *testing.T, from, to *machine) {
	t.Helper()
	key := "/registry/pods/default/after-" + t.Name()
	from.put(key, pod("after", "1"))
	eventually(t, "a change gets across", func() bool { return to.get(key) != "" })
	eventually(t, "all are alive", func() bool { return from.alive() == 2 && to.alive() == 2 })
}

func TestGarbageOnThePort(t *testing.T) {
	_, n1, n2, log := pair(t)
	began := time.Now()
	garbage := make([]byte, 4096)
	for i := range 300 {
		if _, err := rand.Read(garbage); err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 1:
			copy(garbage, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		case 2:
			copy(garbage, []byte{22, 3, 1, 15, 0}) // a TLS record
		case 3:
			copy(garbage, append([]byte{244, 9}, "moot/test"...)) // memberlist without TLS
		}
		c := n1.dial()
		_, _ = c.Write(garbage)
		said := endsQuietly(t, c)
		if len(said) > 7 { // an alert at most
			t.Errorf("garbage is answered with %d bytes", len(said))
		}
		u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(n1.addr))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = u.Write(garbage[:1200])
		_ = u.Close()
	}
	eventually(t, "garbage is counted", func() bool {
		r := n1.agent.Status().Refused
		return r.Strangers+r.Busy >= 300 && r.Packets > 0
	})
	seconds := int(time.Since(began)/time.Second) + 2
	for _, what := range []string{"connection refused", "datagram refused", "memberlist"} {
		if n := log.matching(what); n > seconds {
			t.Errorf("%d log lines of %q in %d seconds", n, what, seconds)
		}
	}
	speaks(t, n1, n2)
}

func TestHalfOpenFlood(t *testing.T) {
	_, n1, n2, _ := pair(t)
	n1.stop()
	// The flood comes from the address of a member here, so it is held to the
	// places of one address.
	n1.start(n2.addr)
	eventually(t, "they are together again", func() bool { return n1.alive() == 2 && n2.alive() == 2 })
	var conns []net.Conn
	for range 200 {
		conns = append(conns, n1.dial())
	}
	eventually(t, "most are turned away", func() bool { return n1.agent.Status().Refused.Busy > 0 })
	for _, c := range conns {
		_ = c.Close()
	}
	speaks(t, n1, n2)
}

func TestStrangers(t *testing.T) {
	a, n1, n2, log := pair(t)
	other := newAuthority(t)
	try := func(what string, cfg *tls.Config) error {
		t.Helper()
		cfg.InsecureSkipVerify = true //nolint:gosec // it is the stranger
		c := tls.Client(n1.dial(), cfg)
		defer c.Close() //nolint:errcheck // a test's
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := c.HandshakeContext(t.Context()); err != nil {
			return err
		}
		// With TLS 1.3 the server's verdict comes after the client is done.
		_, err := io.ReadFull(c, make([]byte, 1))
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			t.Errorf("%s: is let in", what)
			return nil
		}
		return err
	}
	member, stranger := *a.issue(t, "n3"), *other.issue(t, "n2")
	for what, cfg := range map[string]*tls.Config{
		"no certificate":       {NextProtos: []string{gossip.ProtocolStore}},
		"another authority's":  {NextProtos: []string{gossip.ProtocolStore}, Certificates: []tls.Certificate{stranger}},
		"another's for gossip": {NextProtos: []string{gossip.ProtocolGossip}, Certificates: []tls.Certificate{stranger}},
		"no protocol":          {Certificates: []tls.Certificate{member}},
		"unknown protocol":     {NextProtos: []string{"h2"}, Certificates: []tls.Certificate{member}},
		"many protocols":       {NextProtos: []string{gossip.ProtocolStore, gossip.ProtocolJoin}, Certificates: []tls.Certificate{member}},
		"old TLS":              {NextProtos: []string{gossip.ProtocolStore}, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{member}},
		"join without a hook":  {NextProtos: []string{gossip.ProtocolJoin}},
	} {
		if err := try(what, cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if log.matching("PRIVATE") > 0 {
		t.Error("the log holds a key")
	}
	speaks(t, n1, n2)
}

// A member's certificate does not let it speak for another, and what it sends
// cannot hurt.
func TestMemberWithoutManners(t *testing.T) {
	a, n1, n2, _ := pair(t)
	member := *a.issue(t, "n3")
	open := func() *tls.Conn {
		t.Helper()
		c := tls.Client(n1.dial(), &tls.Config{
			NextProtos: []string{gossip.ProtocolStore}, Certificates: []tls.Certificate{member},
			InsecureSkipVerify: true, //nolint:gosec // a test's
		})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	message := func(kind byte, body []byte) []byte {
		return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), kind), body...) //nolint:gosec // small
	}
	text := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	hello := func(cluster, name string) []byte {
		b := append([]byte{1, 1}, text(cluster)...)
		b = append(b, text(name)...)
		return message(1, append(b, 1))
	}
	for what, sent := range map[string][]byte{
		"another's name":    hello("test", "n2"),
		"another cluster":   hello("other", "n3"),
		"an endless length": {255, 255, 255, 255, 1},
		"a wrong message":   message(8, []byte{1}),
		"rubbish":           bytes.Repeat([]byte{7}, 100),
		"a bad start":       append(hello("test", "n3"), message(8, bytes.Repeat([]byte{255}, 50))...),
		"a wrong start":     append(hello("test", "n3"), message(4, nil)...),
		"an unasked pull":   append(hello("test", "n3"), append(message(8, []byte{0, 0, 0}), message(6, []byte{255, 255, 3})...)...),
	} {
		c := open()
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, bufio.NewReader(c)); err != nil {
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				t.Errorf("%s: the stream is kept", what)
			}
		}
		_ = c.Close()
	}
	speaks(t, n1, n2)
}

func TestReplayedDatagrams(t *testing.T) {
	_, n1, n2, _ := pair(t)
	tap := &tap{}
	n2.stop()
	n2.cfg.Network = tap
	n2.start(n1.addr)
	eventually(t, "they are together again", func() bool { return n1.alive() == 2 && n2.alive() == 2 })
	eventually(t, "datagrams are caught", func() bool { return tap.count() > 20 })
	n2.stop()
	eventually(t, "the death is noticed", func() bool { return n1.alive() == 1 })
	// What n2 said while it lived does not bring it back.
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(n1.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close() //nolint:errcheck // a test's
	for _, p := range tap.all() {
		_, _ = u.Write(p)
	}
	for range 50 {
		n1.put("/registry/pods/default/time-passes", pod("time-passes", "1"))
		if n1.alive() != 1 {
			t.Fatal("replayed datagrams raise the dead")
		}
	}
	n2.cfg.Network = nil
	n2.start(n1.addr)
	speaks(t, n1, n2)
	for _, p := range tap.all() {
		_, _ = u.Write(p)
	}
	speaks(t, n2, n1)
}

// tap is real sockets whose sent datagrams are kept.
type tap struct {
	mu   sync.Mutex
	sent [][]byte
}

func (t *tap) Open(e gossip.Endpoint) (gossip.Port, error) {
	p, err := gossip.Sockets().Open(e)
	return &tappedPort{Port: p, tap: t}, err
}

func (t *tap) count() int { return len(t.all()) }

func (t *tap) all() [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clip(t.sent)
}

func TestIdentityRotates(t *testing.T) {
	a, n1, n2, _ := pair(t)
	// A second authority is trusted beside the first, then certificates are of
	// the second, then the first is dropped.
	b := newAuthority(t)
	both := a.pool.Clone()
	both.AddCert(b.cert)
	for _, m := range []*machine{n1, n2} {
		cert, _, _ := m.identity.get()
		m.identity.set(cert, both)
	}
	for _, m := range []*machine{n1, n2} {
		m.identity.set(b.issue(t, m.name), both)
	}
	for _, m := range []*machine{n1, n2} {
		cert, _, _ := m.identity.get()
		m.identity.set(cert, b.pool)
	}
	if err := n1.agent.CatchUp(t.Context()); err != nil {
		t.Errorf("new handshakes fail: %v", err)
	}
	speaks(t, n1, n2)
}

func TestJoinHookGetsStrangers(t *testing.T) {
	a := newAuthority(t)
	n1 := newMachine(t, a, 1, "n1")
	got := make(chan string, 1)
	n1.cfg.Join = func(c net.Conn) {
		defer c.Close() //nolint:errcheck // a test's
		line, _ := bufio.NewReader(c).ReadString('\n')
		got <- line
	}
	n1.start()
	<-n1.agent.Ready()
	c := tls.Client(n1.dial(), &tls.Config{RootCAs: a.pool, NextProtos: []string{gossip.ProtocolJoin}, InsecureSkipVerify: true}) //nolint:gosec // a test's
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := c.ConnectionState().PeerCertificates[0].Subject.CommonName; name != "n1" {
		t.Errorf("the server is %q", name)
	}
	if _, err := c.Write([]byte("let me in\n")); err != nil {
		t.Fatal(err)
	}
	if line := <-got; line != "let me in\n" {
		t.Errorf("the hook got %q", line)
	}
}

func TestRunLeaksNothing(t *testing.T) {
	a := newAuthority(t)
	n1, n2 := newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	round := func() {
		n1.start()
		n2.start(n1.addr)
		eventually(t, "cluster forms", func() bool { return n1.alive() == 2 && n2.alive() == 2 })
		n1.stop()
		n2.stop()
	}
	round()
	goroutines, files := settled(t, runtime.NumGoroutine()+5), openFiles(t)
	for range 3 {
		round()
	}
	settled(t, goroutines)
	if now := openFiles(t); now > files {
		t.Errorf("%d files are open, %d were", now, files)
	}
}

// settled waits until no more than limit goroutines run, and returns how many
// that is.
func settled(t *testing.T, limit int) int {
	t.Helper()
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= limit })
	return runtime.NumGoroutine()
}
