package pki

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// Stages are the three states of a rotation of what members recognise each
// other by, each the whole content of the file. Every member must have taken a
// stage before the first takes the next; then no two of them ever disagree.
type Stages struct {
	Trust []byte // the new authority and gossip key are accepted; the old ones are used
	Issue []byte // the new ones are used; the old ones are accepted
	Drop  []byte // the new ones alone
}

// PlanRotation draws a new peer authority and a new gossip key and lays out how
// to get there from what dir holds. It changes nothing.
func PlanRotation(dir string, now time.Time) (Stages, error) {
	old, err := readPeers(dir)
	if err != nil {
		return Stages{}, err
	}
	if old == nil {
		return Stages{}, fmt.Errorf("plan rotation: no keys in %s", dir)
	}
	signer, err := newPeerAuthority(now)
	if err != nil {
		return Stages{}, err
	}
	key, err := newGossipKey()
	if err != nil {
		return Stages{}, err
	}
	var s Stages
	for _, stage := range []struct {
		to      *[]byte
		signer  *authority
		trusted []*x509.Certificate
		gossip  [][]byte
	}{
		{&s.Trust, old.signer, []*x509.Certificate{old.signer.cert, signer.cert}, [][]byte{old.gossip[0], key}},
		{&s.Issue, signer, []*x509.Certificate{signer.cert, old.signer.cert}, [][]byte{key, old.gossip[0]}},
		{&s.Drop, signer, []*x509.Certificate{signer.cert}, [][]byte{key}},
	} {
		p := &peers{cluster: old.cluster, signer: stage.signer, trusted: stage.trusted, gossip: stage.gossip}
		if *stage.to, err = p.encode(); err != nil {
			return Stages{}, err
		}
	}
	return s, nil
}

// Reached counts the stages that dir has been through: none to all 3, or 4 when
// another rotation has begun there since.
func (s Stages) Reached(dir string) (int, error) {
	have, err := readPeers(dir)
	if err != nil || have == nil {
		return 0, err
	}
	var last *peers
	for n, data := range [][]byte{s.Trust, s.Issue, s.Drop} {
		if last, err = parsePeers(data); err != nil {
			return 0, fmt.Errorf("read stage %d of rotation: %w", n+1, err)
		}
		if have.equal(last) {
			return n + 1, nil
		}
	}
	if have.signer.cert.Equal(last.signer.cert) {
		return 4, nil
	}
	return 0, nil
}

// AdoptPeers replaces what members recognise each other by and issues this
// node's certificate anew when its authority changed. It refuses another
// cluster's with [ErrOtherCluster]. It may be called while the node runs;
// [PeerIdentity] picks the change up.
func AdoptPeers(dir string, data []byte, node string, now time.Time) error {
	came, err := parsePeers(data)
	if err != nil {
		return fmt.Errorf("adopt members' keys: %w", err)
	}
	have, err := readPeers(dir)
	if err != nil {
		return err
	}
	if have == nil || have.cluster != came.cluster {
		return fmt.Errorf("adopt members' keys in %s: %w", dir, ErrOtherCluster)
	}
	path := filepath.Join(dir, peersFile)
	if !have.equal(came) {
		if err := writeFile(path, data); err != nil {
			return err
		}
	}
	e := &ensurer{dir: dir, now: now, bundle: &Bundle{}}
	_, err = e.ensurePair(peerBase, came.signer, peerLeaf(node))
	return err
}

func (p *peers) equal(o *peers) bool {
	return p.cluster == o.cluster && p.signer.cert.Equal(o.signer.cert) &&
		slices.EqualFunc(p.trusted, o.trusted, (*x509.Certificate).Equal) &&
		slices.EqualFunc(p.gossip, o.gossip, slices.Equal[[]byte])
}

// SealingKey derives from the Kubernetes authority's key, which every member
// holds and no rotation replaces, a key to encrypt what only members may read.
func SealingKey(dir string) ([]byte, error) {
	keyPEM, err := readFile(filepath.Join(dir, caBase+".key"))
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("derive sealing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("derive sealing key: %w", err)
	}
	sealing, err := hkdf.Key(sha256.New, der, nil, "moot members' keys", 32)
	if err != nil {
		return nil, fmt.Errorf("derive sealing key: %w", err)
	}
	return sealing, nil
}
