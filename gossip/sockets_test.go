package gossip_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/testbed/loopback"
)

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// A machine that does not find the cluster of its token hangs up. The member
// says what that means, not only that it did.
func TestForeignTokenIsExplained(t *testing.T) {
	id := &identity{}
	a := newAuthority(t)
	id.set(a.issue(t, "n1"), a.pool)
	log, addr := &lines{}, loopback.Addr(t)
	port, err := gossip.Sockets().Open(gossip.Endpoint{
		Name: "n1", Bind: addr, Identity: id.get, Log: slog.New(slog.NewTextHandler(log, nil)),
		Known: func(netip.Addr) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = port.Serve(func(gossip.Stream) {}) })
	defer serving.Wait()
	defer func() { _ = port.Close() }()

	foreign := errors.New("another cluster's")
	_, err = tls.Dial("tcp", addr.String(), &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{gossip.ProtocolJoin}, InsecureSkipVerify: true,
		VerifyConnection: func(tls.ConnectionState) error { return foreign },
	})
	if !errors.Is(err, foreign) {
		t.Fatalf("dial: %v", err)
	}
	eventually(t, "the member explains", func() bool { return log.has("token of another cluster") })
}

// A message of any size arrives as it was sent, also one that takes several
// records of TLS and more than is handed over at once.
func TestMessagesOfAllSizes(t *testing.T) {
	id := &identity{}
	a := newAuthority(t)
	id.set(a.issue(t, "n1"), a.pool)
	open := func(addr netip.AddrPort) gossip.Port {
		port, err := gossip.Sockets().Open(gossip.Endpoint{
			Name: "n1", Bind: addr, Identity: id.get, Log: slog.New(slog.DiscardHandler),
			Known: func(netip.Addr) bool { return true },
		})
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	addr := loopback.Addr(t)
	to, from := open(addr), open(loopback.Addr(t))
	var serving sync.WaitGroup
	serving.Go(func() {
		_ = to.Serve(func(s gossip.Stream) {
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
	})
	defer serving.Wait()
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	conn, _, err := from.Dial(t.Context(), addr, "n1", gossip.ProtocolStore)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 16 << 10, 16<<10 + 1, 100_000, 128 << 10, 1 << 20} {
		sent := make([]byte, size)
		for i := range sent {
			sent[i] = byte(i * 31 >> 3)
		}
		var writing sync.WaitGroup
		writing.Go(func() {
			if n, err := conn.Write(sent); n != size || err != nil {
				t.Errorf("write %d bytes: %d, %v", size, n, err)
			}
		})
		got := make([]byte, size)
		_, err := io.ReadFull(conn, got)
		writing.Wait()
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes do not come back: %v", size, err)
		}
	}
}
