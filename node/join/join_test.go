package join

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/testbed/loopback"
)

func TestJoin(t *testing.T) {
	m := newMember(t)
	m.serve()
	token := m.token(DefaultTTL)
	grant, err := m.dialer(token).Do(t.Context(), m.address)
	if err != nil {
		t.Fatal(err)
	}
	if grant.Cluster != m.keys.Cluster || grant.Settings != m.cfg.Settings || grant.Number <= firstNumber {
		t.Errorf("grant of %s, %+v, number %d", grant.Cluster, grant.Settings, grant.Number)
	}
	if !slices.Equal(grant.Peers, []netip.AddrPort{m.cfg.Address}) {
		t.Errorf("peers %v", grant.Peers)
	}

	// The machine is a member with it: both sides trust each other's certificates.
	dir := t.TempDir()
	if err := pki.Import(dir, grant.Material); err != nil {
		t.Fatal(err)
	}
	theirs, err := ensureKeys(t, dir, "n2").PeerIdentity()
	if err != nil {
		t.Fatal(err)
	}
	wantMutualTrust(t, m.identity, theirs)

	// It may ask again, as after a crash, and is the same member.
	again, err := m.dialer(token).Do(t.Context(), m.address)
	if err != nil {
		t.Fatal(err)
	}
	if again.Number != grant.Number {
		t.Errorf("number %d became %d", grant.Number, again.Number)
	}
	members, err := m.registry.List(t.Context())
	if err != nil || len(members) != 2 || members[1].Name != "n2" || members[1].By != "n1" {
		t.Errorf("members %+v: %v", members, err)
	}
	list, err := m.tokens.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Uses != 2 {
		t.Errorf("tokens %+v: %v", list, err)
	}
	wantNoSecrets(t, m, token)
}

func wantMutualTrust(t *testing.T, a, b *pki.PeerIdentity) {
	t.Helper()
	certA, poolA, err := a.TLS()
	if err != nil {
		t.Fatal(err)
	}
	certB, poolB, err := b.TLS()
	if err != nil {
		t.Fatal(err)
	}
	left, right := net.Pipe()
	client := tls.Client(left, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*certB}, RootCAs: poolB,
		InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error { return verifyMember(s.PeerCertificates, mustPin(t, a)) }})
	server := tls.Server(right, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*certA}, ClientCAs: poolA, ClientAuth: tls.RequireAndVerifyClientCert})
	done := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		done <- err
	}()
	if err := server.HandshakeContext(t.Context()); err != nil {
		t.Errorf("members do not trust each other: %v", err)
	}
	_, err = server.Write([]byte{1})
	if err := errors.Join(err, <-done, left.Close(), right.Close()); err != nil {
		t.Error(err)
	}
}

func mustPin(t *testing.T, i *pki.PeerIdentity) string {
	t.Helper()
	pin, err := i.Pin()
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

func wantNoSecrets(t *testing.T, m *member, token Token) {
	t.Helper()
	result, err := m.store.Range(t.Context(), below("/moot/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{string(token.Secret), "0123456789abcdef0123456789abcdef"} {
		if strings.Contains(m.log.String(), secret) {
			t.Errorf("a secret was logged:\n%s", m.log)
		}
		for _, kv := range result.KVs {
			if strings.Contains(string(kv.Value), secret) {
				t.Errorf("%s holds a secret", kv.Key)
			}
		}
	}
}

// Each refusal is said in the same words on both sides, and leaves no member
// behind.
func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		member func(*member)
		dialer func(*member, *Dialer)
		reason Reason
		says   []string
	}{
		"wrong secret": {
			dialer: func(_ *member, d *Dialer) { d.Token.Secret = Secret(strings.Repeat("0", 2*secretBytes)) },
			reason: ReasonToken, says: []string{"not one of this cluster's", "moot token create"},
		},
		"unknown token": {
			dialer: func(_ *member, d *Dialer) { d.Token.ID = "ffffffffff" },
			reason: ReasonToken, says: []string{"not one of this cluster's"},
		},
		"revoked token": {
			dialer: func(m *member, d *Dialer) {
				if err := m.tokens.Revoke(m.t.Context(), d.Token.ID); err != nil {
					m.t.Error(err)
				}
			},
			reason: ReasonToken, says: []string{"revoked"},
		},
		"expired token": {
			dialer: func(m *member, _ *Dialer) { m.clock.add(DefaultTTL + time.Minute) },
			reason: ReasonExpired, says: []string{"expired on", "1m"},
		},
		"clock behind": {
			dialer: func(m *member, d *Dialer) {
				at := m.clock.now().Add(-3 * time.Hour)
				d.Now = func() time.Time { return at }
			},
			reason: ReasonClock, says: []string{"3h0m0s behind", "machine's clock says", "member n1 says"},
		},
		"clock ahead by years": {
			dialer: func(m *member, d *Dialer) {
				at := m.clock.now().AddDate(20, 0, 0)
				d.Now = func() time.Time { return at }
			},
			reason: ReasonClock, says: []string{"ahead of", "set the clocks"},
		},
		"name of a living member": {
			dialer: func(_ *member, d *Dialer) { d.Request.Name = "n1" },
			reason: ReasonName, says: []string{"living member at 192.0.2.1:7443 is named n1", "--node-name"},
		},
		"name of a dead member": {
			member: func(m *member) { m.live = nil },
			dialer: func(_ *member, d *Dialer) { d.Request.Name = "n1" },
			reason: ReasonName, says: []string{"another machine, at 192.0.2.1:7443", "moot remove n1"},
		},
		"no name": {
			dialer: func(_ *member, d *Dialer) { d.Request.Name = "No_Name" },
			reason: ReasonName, says: []string{"cannot be a node's name"},
		},
		"address of a living member": {
			dialer: func(_ *member, d *Dialer) { d.Request.Address = netip.MustParseAddrPort("192.0.2.1:7443") },
			reason: ReasonAddress, says: []string{"living member n1 has the address"},
		},
		"no address": {
			dialer: func(_ *member, d *Dialer) { d.Request.Address = netip.MustParseAddrPort("127.0.0.1:7443") },
			reason: ReasonAddress, says: []string{"no address that members could reach"},
		},
		"other cluster's data directory": {
			dialer: func(_ *member, d *Dialer) { d.Request.Cluster = "0011223344" },
			reason: ReasonCluster, says: []string{"belongs to the cluster 0011223344", "--data-dir"},
		},
		"other major version": {
			dialer: func(_ *member, d *Dialer) { d.Request.Version = "0.2.0" },
			reason: ReasonVersion, says: []string{"runs moot 0.2.0 and the cluster 0.1.0"},
		},
		"no identity of its own": {
			dialer: func(_ *member, d *Dialer) { d.Request.Machine = "" },
			reason: ReasonProtocol, says: []string{"identity of its data directory"},
		},
		"member cannot": {
			member: func(m *member) {
				m.cfg.Material = func() (pki.Material, error) { return pki.Material{}, errors.New("disk on fire") }
			},
			reason: ReasonInternal, says: []string{"member n1 could not", "its log says why"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMember(t)
			if tt.member != nil {
				tt.member(m)
			}
			m.serve()
			d := m.dialer(m.token(DefaultTTL))
			if tt.dialer != nil {
				tt.dialer(m, d)
			}
			grant, err := d.Do(t.Context(), m.address)
			refusal, ok := errors.AsType[*Refusal](err)
			if grant != nil || !ok {
				t.Fatalf("granted %v, error %v", grant != nil, err)
			}
			if Temporary(err) != (tt.reason == ReasonInternal) {
				t.Errorf("worth another try: %v", Temporary(err))
			}
			if refusal.Reason != tt.reason {
				t.Errorf("refused for %s, want %s: %v", refusal.Reason, tt.reason, refusal)
			}
			for _, part := range tt.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not mention %q", err, part)
				}
			}
			if tt.reason != ReasonInternal {
				if log := m.log.String(); !strings.Contains(log, strings.Trim(strconv.Quote(refusal.Text), `"`)) {
					t.Errorf("the member logged other words than %q:\n%s", refusal.Text, log)
				}
				if members, err := m.registry.List(t.Context()); err != nil || len(members) != 1 {
					t.Errorf("members %v: %v", members, err)
				}
			} else if !strings.Contains(m.log.String(), "disk on fire") {
				t.Errorf("the member did not log why:\n%s", m.log)
			}
			wantNoSecrets(t, m, d.Token)
		})
	}
}

// The machine sends its secret to none but the cluster of its token.
func TestOtherClusterGetsNoSecret(t *testing.T) {
	m, other := newMember(t), newMember(t)
	other.serve()
	_, err := m.dialer(m.token(0)).Do(t.Context(), other.address)
	if !errors.Is(err, ErrNotTheCluster) {
		t.Fatalf("error %v", err)
	}
	other.stop()
	if !strings.Contains(err.Error(), "another cluster's") || !strings.Contains(other.log.String(), "token is not this cluster's") {
		t.Errorf("error %v; log:\n%s", err, other.log)
	}
}

// A certificate of the pinned authority in the chain proves nothing unless the
// member's own is signed by it.
func TestBorrowedAuthority(t *testing.T) {
	m, other := newMember(t), newMember(t)
	mine, _, err := m.identity.TLS()
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := other.identity.TLS()
	if err != nil {
		t.Fatal(err)
	}
	forged := *theirs
	forged.Certificate = [][]byte{theirs.Certificate[0], mine.Certificate[1]}
	err = func() error {
		client, server := net.Pipe()
		defer func() { _ = client.Close() }()
		go func() {
			_ = tls.Server(server, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol}, Certificates: []tls.Certificate{forged}}).Handshake()
			_ = server.Close()
		}()
		_, err := m.dialer(m.token(0)).shake(t.Context(), client)
		return err
	}()
	if !errors.Is(err, ErrNotTheCluster) {
		t.Errorf("error %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	m := newMember(t)
	address := loopback.Addr(t).String()
	if _, err := m.dialer(m.token(0)).Do(t.Context(), address); !errors.Is(err, ErrUnreachable) || !Temporary(err) {
		t.Errorf("error %v", err)
	}
}

func TestRejoinOfALivingMember(t *testing.T) {
	m := newMember(t)
	m.serve()
	d := m.dialer(m.token(0))
	if _, err := d.Do(t.Context(), m.address); err != nil {
		t.Fatal(err)
	}
	// Its death has not been noticed yet: the same machine at the same address.
	m.live = append(m.live, Live{Name: "n2", Address: d.Request.Address})
	if _, err := d.Do(t.Context(), m.address); err != nil {
		t.Errorf("the same machine: %v", err)
	}
	// A copy of its data directory elsewhere.
	d.Request.Address = netip.MustParseAddrPort("192.0.2.3:7443")
	if _, err := d.Do(t.Context(), m.address); err == nil || !strings.Contains(err.Error(), "living member") {
		t.Errorf("a copy: %v", err)
	}
	// Once dead and gone, the same machine may come back elsewhere.
	m.live = m.live[:1]
	if _, err := d.Do(t.Context(), m.address); err != nil {
		t.Errorf("the same machine at another address: %v", err)
	}
}

// Who sees a member's word that it has taken the next stage of a rotation has to
// see the machines that have the keys of the one before from it.
func TestRegisteredBeforeItGetsKeys(t *testing.T) {
	m := newMember(t)
	read := m.cfg.Material
	m.cfg.Material = func() (pki.Material, error) {
		members, err := m.registry.List(t.Context())
		if err != nil || len(members) != 2 || members[1].Name != "n2" {
			t.Errorf("members %+v: %v", members, err)
		}
		return read()
	}
	m.serve()
	if _, err := m.dialer(m.token(0)).Do(t.Context(), m.address); err != nil {
		t.Fatal(err)
	}
}

// A machine that was let in and stopped before it kept what it was given is
// waited for as a member; when the others have gone on to the new authority
// meanwhile, it takes its joining up with a token made since.
func TestJoiningIsTakenUpDuringARotation(t *testing.T) {
	m := newMember(t)
	m.serve()
	old := m.token(0)
	first, err := m.dialer(old).Do(t.Context(), m.address)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pki.Import(dir, first.Material); err != nil {
		t.Fatal(err)
	}
	stages, err := pki.PlanRotation(m.dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m.adopt(stages.Trust)
	theirs, err := ensureKeys(t, dir, "n2").PeerIdentity()
	if err != nil {
		t.Fatal(err)
	}
	wantMutualTrust(t, m.identity, theirs)
	m.stop()
	m.adopt(stages.Issue)
	m.serve()
	if _, err := m.dialer(old).Do(t.Context(), m.address); !errors.Is(err, ErrNotTheCluster) || !strings.Contains(err.Error(), "moot token create") {
		t.Errorf("with the old token: %v", err)
	}
	again, err := m.dialer(m.token(0)).Do(t.Context(), m.address)
	if err != nil || again.Number != first.Number {
		t.Fatalf("grant %v, was %v: %v", again, first, err)
	}
	if err := pki.Import(dir, again.Material); err != nil {
		t.Fatal(err)
	}
	ensureKeys(t, dir, "n2")
	wantMutualTrust(t, m.identity, theirs)
	m.adopt(stages.Drop)
	wantMutualTrust(t, m.identity, theirs)
}

func TestTooManyAttempts(t *testing.T) {
	m := newMember(t)
	m.serve()
	good := m.dialer(m.token(0))
	bad := m.dialer(good.Token)
	bad.Token.Secret = Secret(strings.Repeat("0", 2*secretBytes))
	for i := range attemptsAtOnce {
		if _, err := bad.Do(t.Context(), m.address); err == nil {
			t.Fatalf("attempt %d was granted", i)
		}
	}
	_, err := good.Do(t.Context(), m.address)
	if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Reason != ReasonBusy || !Temporary(err) {
		t.Errorf("after %d attempts: %v", attemptsAtOnce, err)
	}
	// The member's clock stands still: one line in all of this second.
	if lines := strings.Count(m.log.String(), "\n"); lines != 1 {
		t.Errorf("%d log lines:\n%s", lines, m.log)
	}
	m.clock.add(attemptEvery)
	if _, err := good.Do(t.Context(), m.address); err != nil {
		t.Errorf("after a while: %v", err)
	}
}
