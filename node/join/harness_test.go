package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/pki"
)

// member is one member of a cluster with its real store and keys, listening on
// loopback as the agent would.
type member struct {
	t        testing.TB
	clock    *clock
	log      *logs
	keys     *pki.Bundle
	dir      string // of the keys
	identity *pki.PeerIdentity
	store    *store.Store
	tokens   *Tokens
	registry *Registry
	live     []Live
	cfg      Config
	address  string
	stop     func() // ends the serving; every connection has been answered then
}

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// logs keeps what was logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	db, err := store.Open(store.DefaultConfig(filepath.Join(t.TempDir(), "store")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("store: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return db
}

func ensureKeys(t testing.TB, dir, name string) *pki.Bundle {
	t.Helper()
	b, err := pki.Ensure(dir, pki.Params{
		NodeName: name, NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), ClusterDomain: "cluster.local", APIPort: 6443,
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newMember(t *testing.T) *member { t.Helper(); return newMemberFor(t) }

func newMemberFor(t testing.TB) *member {
	t.Helper()
	m := &member{t: t, clock: &clock{at: time.Now()}, log: &logs{}, dir: t.TempDir(), store: openStore(t)}
	m.keys = ensureKeys(t, m.dir, "n1")
	var err error
	if m.identity, err = m.keys.PeerIdentity(); err != nil {
		t.Fatal(err)
	}
	m.tokens, m.registry = NewTokens(m.store, m.clock.now), NewRegistry(m.store, m.clock.now)
	addr := netip.MustParseAddrPort("192.0.2.1:7443")
	if _, err := m.registry.Settle(t.Context(), Self{Name: "n1", Machine: "the first machine's secret", Address: addr, Version: "0.1.0"}, true); err != nil {
		t.Fatal(err)
	}
	m.live = []Live{{Name: "n1", Address: addr}}
	m.cfg = Config{
		Name: "n1", Version: "0.1.0", Cluster: m.keys.Cluster, Address: addr,
		Settings: Settings{
			ClusterCIDR: Networks{First: netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDR: Networks{First: netip.MustParsePrefix("10.43.0.0/16")}, ClusterDomain: "cluster.local",
		},
		Tokens: m.tokens, Registry: m.registry, Live: func() []Live { return m.live },
		Material: func() (pki.Material, error) { return pki.Export(m.dir) },
		Now:      m.clock.now, Log: slog.New(slog.NewTextHandler(m.log, nil)),
	}
	return m
}

// serve listens until the test ends.
func (m *member) serve() {
	m.t.Helper()
	server, err := NewServer(m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, _, err := m.identity.TLS()
	if err != nil {
		m.t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol, "moot-gossip"}, Certificates: []tls.Certificate{*cert},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.address = listener.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { server.Serve(conn) })
		}
	})
	m.stop = sync.OnceFunc(func() {
		if err := listener.Close(); err != nil {
			m.t.Error(err)
		}
		serving.Wait()
	})
	m.t.Cleanup(m.stop)
}

// adopt takes the member through a stage of a rotation.
func (m *member) adopt(keys []byte) {
	m.t.Helper()
	if err := pki.AdoptPeers(m.dir, keys, "n1", time.Now()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) token(ttl time.Duration) Token {
	m.t.Helper()
	pin, err := m.identity.Pin()
	if err != nil {
		m.t.Fatal(err)
	}
	token, _, err := m.tokens.Create(m.t.Context(), pin, ttl, "for a test")
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

// dialer asks to join as a machine that is in order.
func (m *member) dialer(token Token) *Dialer {
	return &Dialer{
		Token: token, Now: m.clock.now,
		Request: Request{
			Name: "n2", Machine: "0123456789abcdef0123456789abcdef", Version: "0.1.7",
			Address: netip.MustParseAddrPort("192.0.2.2:7443"),
		},
	}
}
