package gossip_test

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/mootkube/moot/gossip"
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
	log, addr := &lines{}, freePort(t)
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
