package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func identity(t *testing.T, b *Bundle) *PeerIdentity {
	t.Helper()
	i, err := b.PeerIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// trusts reports whether a accepts b's certificate, as either end.
func trusts(t *testing.T, a, b *PeerIdentity) bool {
	t.Helper()
	_, pool, err := a.TLS()
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := b.TLS()
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: testTime(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return false
		}
	}
	return true
}

func secondMember(t *testing.T, first string) (string, *Bundle) {
	t.Helper()
	m, err := Export(first)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Import(dir, m); err != nil {
		t.Fatal(err)
	}
	p := testParams()
	p.NodeName, p.NodeIPs = "n2", []netip.Addr{netip.MustParseAddr("192.0.2.8")}
	return dir, ensure(t, dir, p, testTime())
}

func TestMembersKnowEachOtherAndNobodyElse(t *testing.T) {
	dir := t.TempDir()
	b := ensure(t, dir, testParams(), testTime())
	_, second := secondMember(t, dir)
	i, j := identity(t, b), identity(t, second)
	if b.Cluster == "" || b.Cluster != second.Cluster {
		t.Errorf("clusters %q and %q", b.Cluster, second.Cluster)
	}
	if !trusts(t, i, j) || !trusts(t, j, i) {
		t.Error("members do not trust each other")
	}
	cert, pool, err := i.TLS()
	if err != nil {
		t.Fatal(err)
	}
	if cert.Leaf.Subject.CommonName != "n1" || len(cert.Certificate) != 2 {
		t.Errorf("certificate of %q with a chain of %d", cert.Leaf.Subject.CommonName, len(cert.Certificate))
	}
	// Neither authority's certificates are good with the other.
	for _, pair := range []Pair{b.KubeletClient, b.KubeletServing, b.APIServer, b.FrontProxyClient} {
		if _, err := readCert(t, pair.Cert).Verify(x509.VerifyOptions{Roots: pool, CurrentTime: testTime(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			t.Errorf("%s makes a member", pair.Cert)
		}
	}
	for _, ca := range []Pair{b.CA, b.FrontProxyCA} {
		if verify(t, cert.Leaf, ca.Cert, "", x509.ExtKeyUsageClientAuth, testTime()) == nil {
			t.Errorf("a member's certificate is good with %s", ca.Cert)
		}
	}
	authority, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	if pin, err := i.Pin(); err != nil || pin != Pin(authority) || pin[:32] != b.Cluster {
		t.Errorf("pin %s: %v", pin, err)
	}
	keys, err := i.GossipKeys()
	theirs, err2 := j.GossipKeys()
	if err := errors.Join(err, err2); err != nil || len(keys) != 1 || len(keys[0]) != GossipKeyBytes || !bytes.Equal(keys[0], theirs[0]) {
		t.Errorf("gossip keys differ or have another length: %v", err)
	}
}

// A directory that the code before this wrote gets what is new.
func TestDirectoryOfOneNode(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, testParams(), testTime())
	for _, name := range []string{peersFile, "peer.crt", "peer.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, dir)
	b := ensure(t, dir, testParams(), testTime())
	if !trusts(t, identity(t, b), identity(t, b)) {
		t.Error("the new certificate is not trusted")
	}
	after := snapshot(t, dir)
	for name, data := range before {
		if !bytes.Equal(after[name], data) {
			t.Errorf("%s changed", name)
		}
	}
}

// Through a rotation, members at this stage and at the next trust each other,
// in every order, and both open what the other encrypts.
func TestStages(t *testing.T) {
	firstDir := t.TempDir()
	first := ensure(t, firstDir, testParams(), testTime())
	secondDir, second := secondMember(t, firstDir)
	i, j := identity(t, first), identity(t, second)
	oldKeys, err := i.GossipKeys()
	if err != nil {
		t.Fatal(err)
	}
	oldPin, err := i.Pin()
	if err != nil {
		t.Fatal(err)
	}
	before, err := Export(firstDir)
	if err != nil {
		t.Fatal(err)
	}
	stages, err := PlanRotation(firstDir, testTime())
	if err != nil {
		t.Fatal(err)
	}
	for n, stage := range [][]byte{stages.Trust, stages.Issue, stages.Drop} {
		for _, m := range []struct{ dir, name string }{{firstDir, "n1"}, {secondDir, "n2"}} {
			if err := AdoptPeers(m.dir, stage, m.name, testTime()); err != nil {
				t.Fatalf("stage %d at %s: %v", n, m.name, err)
			}
			if reached, err := stages.Reached(m.dir); err != nil || reached != n+1 {
				t.Errorf("%s has reached stage %d, not %d: %v", m.name, reached, n+1, err)
			}
			if !trusts(t, i, j) || !trusts(t, j, i) {
				t.Fatalf("stage %d: members do not trust each other once %s has it", n, m.name)
			}
			a, errA := i.GossipKeys()
			b, errB := j.GossipKeys()
			if err := errors.Join(errA, errB); err != nil {
				t.Fatal(err)
			}
			if !contains(a, b[0]) || !contains(b, a[0]) {
				t.Fatalf("stage %d: one cannot open what the other encrypts", n)
			}
		}
	}
	newKeys, err := i.GossipKeys()
	if err != nil || len(newKeys) != 1 || bytes.Equal(newKeys[0], oldKeys[0]) {
		t.Errorf("gossip keys were not replaced: %v", err)
	}
	if pin, err := i.Pin(); err != nil || pin == oldPin {
		t.Errorf("the authority was not replaced: %v", err)
	}
	if again := ensure(t, firstDir, testParams(), testTime()); again.Cluster != first.Cluster || len(again.Issued) != 0 {
		t.Errorf("cluster %s became %s; issued %v", first.Cluster, again.Cluster, again.Issued)
	}

	// The next rotation is ahead of this one, and what was before it behind.
	next, err := PlanRotation(secondDir, testTime())
	if err != nil {
		t.Fatal(err)
	}
	if reached, err := next.Reached(secondDir); err != nil || reached != 0 {
		t.Errorf("%d stages of a rotation that was only planned: %v", reached, err)
	}
	if err := AdoptPeers(secondDir, next.Trust, "n2", testTime()); err != nil {
		t.Fatal(err)
	}
	if reached, err := stages.Reached(secondDir); err != nil || reached != 4 {
		t.Errorf("in the next rotation, %d stages of this one: %v", reached, err)
	}

	// Who missed it all is a stranger, and a member again with a new grant.
	lateDir := t.TempDir()
	if err := Import(lateDir, before); err != nil {
		t.Fatal(err)
	}
	late := identity(t, ensure(t, lateDir, testParams(), testTime()))
	if trusts(t, i, late) {
		t.Error("a certificate of the old authority is still trusted")
	}
	now, err := Export(firstDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Import(lateDir, now); err != nil {
		t.Fatal(err)
	}
	ensure(t, lateDir, testParams(), testTime())
	if !trusts(t, i, late) || !trusts(t, late, i) {
		t.Error("a member that took the new keys is not trusted")
	}
	other := t.TempDir()
	ensure(t, other, testParams(), testTime())
	if err := AdoptPeers(other, stages.Trust, "n1", testTime()); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("another cluster's keys: %v", err)
	}
}

func contains(keys [][]byte, key []byte) bool {
	for _, k := range keys {
		if bytes.Equal(k, key) {
			return true
		}
	}
	return false
}

// A half replaced set of files does not take the identity away.
func TestIdentityOutlivesAHalfReplacedSet(t *testing.T) {
	dir := t.TempDir()
	b := ensure(t, dir, testParams(), testTime())
	i := identity(t, b)
	before, _, err := i.TLS()
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(b.Peers)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(b.Peers, []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	if cert, pool, err := i.TLS(); err != nil || cert != before || pool == nil {
		t.Errorf("with garbage: %v", err)
	}
	if _, err := b.PeerIdentity(); err == nil {
		t.Error("garbage makes an identity")
	}
	if err := writeFile(b.Peers, good); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(b.Peer.Cert, b.Peer.Key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := i.TLS(); err != nil {
		t.Error(err)
	}
}

func TestBeginImport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := BeginImport(dir); err != nil {
		t.Fatal(err)
	}
	wantError(t, dir, testTime(), "restore again")
	whole := t.TempDir()
	ensure(t, whole, testParams(), testTime())
	m, err := Export(whole)
	if err != nil {
		t.Fatal(err)
	}
	if m.Peers, err = NewPeers(testTime()); err != nil {
		t.Fatal(err)
	}
	if err := Import(dir, m); err != nil {
		t.Fatal(err)
	}
	if b := ensure(t, dir, testParams(), testTime()); b.Cluster != m.ClusterID() {
		t.Errorf("cluster %s, want %s", b.Cluster, m.ClusterID())
	}
}

func FuzzParsePeers(f *testing.F) {
	data, err := NewPeers(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("-----BEGIN MOOT CLUSTER ID-----\nAAAA\n-----END MOOT CLUSTER ID-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePeers(data)
		if err != nil {
			return
		}
		again, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		if q, err := parsePeers(again); err != nil || !p.equal(q) {
			t.Errorf("does not read back: %v", err)
		}
	})
}

func TestErrorsHoldNoKeys(t *testing.T) {
	data, err := NewPeers(testTime())
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePeers(data)
	if err != nil {
		t.Fatal(err)
	}
	p.gossip[0] = p.gossip[0][:31]
	short, err := p.encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = parsePeers(short)
	if err == nil || strings.Contains(fmt.Sprint(err), hex.EncodeToString(p.gossip[0])[:8]) {
		t.Errorf("error %v", err)
	}
}
