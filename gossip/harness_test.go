package gossip_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/testbed/loopback"
)

// authority signs the certificates of peers.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peers"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// issue returns a certificate for name.
func (a *authority) issue(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// identity is an Identity of a configuration that tests may change.
type identity struct {
	mu   sync.Mutex
	cert *tls.Certificate
	pool *x509.CertPool
}

func (i *identity) get() (*tls.Certificate, *x509.CertPool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert, i.pool, nil
}

func (i *identity) set(cert *tls.Certificate, pool *x509.CertPool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cert, i.pool = cert, pool
}

// machine is one node on real sockets with a real store.
type machine struct {
	t        *testing.T
	name     string
	addr     netip.AddrPort
	fs       *vfs.MemFS
	identity *identity
	storeCfg store.Config
	cfg      gossip.Config

	store *store.Store
	agent *gossip.Agent
	stop  func() // stops it, once
	done  chan error
}

func newMachine(t *testing.T, a *authority, number int, name string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, addr: loopback.Addr(t), fs: vfs.NewMem(), identity: &identity{}}
	m.identity.set(a.issue(t, name), a.pool)
	m.storeCfg = store.DefaultConfig("store")
	m.storeCfg.FS, m.storeCfg.Node = m.fs, crdt.NodeNumber(number) //nolint:gosec // a test's
	m.storeCfg.BallastBytes, m.storeCfg.MinFreeBytes = 0, 0
	m.storeCfg.Fingerprint = name
	m.cfg = gossip.DefaultConfig()
	m.cfg.Name, m.cfg.Number = name, crdt.NodeNumber(number) //nolint:gosec // a test's
	m.cfg.Cluster, m.cfg.Version = "test", "v1.2.3"
	m.cfg.Bind, m.cfg.Identity = m.addr, m.identity.get
	m.cfg.Keys = [][]byte{make([]byte, 32)}
	m.cfg.AckWait = 20 * time.Second // what is slow here is the machine
	if os.Getenv("MOOT_GOSSIP_LOG") != "" {
		m.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
		m.storeCfg.Log = m.cfg.Log
	}
	return m
}

// start starts the store and the agent, which seeks others.
func (m *machine) start(seeds ...netip.AddrPort) {
	m.t.Helper()
	cfg := m.storeCfg
	cfg.Hold = func(rev int64, release func()) { m.agent.Hold(rev, release) }
	s, err := store.Open(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.store = s
	m.cfg.Birth = crdt.StampAt(time.Now())
	m.cfg.Store = gossip.Replicate(s)
	m.cfg.Seeds = func() []netip.AddrPort { return seeds }
	if m.agent, err = gossip.New(m.cfg); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	storeCtx, cancelStore := context.WithCancel(context.Background())
	stored := make(chan error, 1)
	go func() { stored <- s.Run(storeCtx) }()
	m.done = make(chan error, 1)
	go func() { m.done <- m.agent.Run(ctx) }()
	done := m.done
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Logf("%s: run ended with %v", m.name, err)
		}
		cancelStore()
		if err := <-stored; err != nil && !errors.Is(err, context.Canceled) {
			m.t.Errorf("store of %s: %v", m.name, err)
		}
		if err := s.Close(); err != nil {
			m.t.Errorf("close store of %s: %v", m.name, err)
		}
	})
	m.t.Cleanup(m.stop)
}

func (m *machine) put(key, value string) {
	m.t.Helper()
	_, err := m.store.Txn(m.t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: []byte(key), Value: []byte(value)}}})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) delete(key string) {
	m.t.Helper()
	_, err := m.store.Txn(m.t.Context(), store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(key)}}})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) get(key string) string {
	m.t.Helper()
	r, err := m.store.Range(m.t.Context(), store.RangeRequest{Key: []byte(key)})
	if err != nil {
		m.t.Fatal(err)
	}
	if len(r.KVs) == 0 {
		return ""
	}
	return string(r.KVs[0].Value)
}

// alive returns how many members a machine holds alive.
func (m *machine) alive() int {
	n := 0
	for _, member := range m.agent.Members() {
		if member.State == gossip.StateAlive {
			n++
		}
	}
	return n
}

// eventually waits until cond holds. The limit is for a test that would hang.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

// agreed reports whether the stores of all are the same.
func agreed(all ...*machine) bool {
	for _, m := range all[1:] {
		if m.store.Digest() != all[0].store.Digest() || !m.store.Vector().Includes(all[0].store.Vector()) || !all[0].store.Vector().Includes(m.store.Vector()) {
			return false
		}
	}
	return true
}
