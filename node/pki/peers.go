package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

const (
	// peersFile holds all that members recognise each other by, in one file so
	// that a rotation replaces it at once: the cluster's id, the authority that
	// signs (certificate, then key), further authorities that are trusted, and
	// the gossip keys. It is the same on every member.
	peersFile = "peers.pem"
	peerBase  = "peer" // this node's own certificate among them

	clusterBlock = "MOOT CLUSTER ID"
	gossipBlock  = "MOOT GOSSIP KEY"

	// GossipKeyBytes is the length of a gossip key: AES-256.
	GossipKeyBytes = 32
	// maxPeerParts bounds authorities and gossip keys. A rotation needs two.
	maxPeerParts = 4
)

// peers is what members recognise each other by. Its authority signs nothing
// else: a Kubernetes client certificate makes nobody a member, and a member's
// certificate nobody a client of the API.
type peers struct {
	cluster [sha256.Size]byte   // hash of the first authority's public key; stays when the authority changes
	signer  *authority          // issues this node's certificate
	trusted []*x509.Certificate // the signer's first
	gossip  [][]byte            // the first encrypts, all decrypt
}

func newPeers(now time.Time) (*peers, error) {
	signer, err := newPeerAuthority(now)
	if err != nil {
		return nil, err
	}
	key, err := newGossipKey()
	if err != nil {
		return nil, err
	}
	return &peers{
		cluster: sha256.Sum256(signer.cert.RawSubjectPublicKeyInfo),
		signer:  signer, trusted: []*x509.Certificate{signer.cert}, gossip: [][]byte{key},
	}, nil
}

func newPeerAuthority(now time.Time) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return newAuthority(key, "moot-peer-ca", now)
}

func newGossipKey() ([]byte, error) {
	key := make([]byte, GossipKeyBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("draw gossip key: %w", err)
	}
	return key, nil
}

// id is the cluster's name for messages and for the gossip.
func (p *peers) id() string { return hex.EncodeToString(p.cluster[:16]) }

func (p *peers) encode() ([]byte, error) {
	key, err := encodeKey(p.signer.key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(pem.EncodeToMemory(&pem.Block{Type: clusterBlock, Bytes: p.cluster[:]}))
	out.Write(encodeCert(p.signer.cert))
	out.Write(key)
	for _, cert := range p.trusted[1:] {
		out.Write(encodeCert(cert))
	}
	for _, key := range p.gossip {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: gossipBlock, Bytes: key}))
	}
	return out.Bytes(), nil
}

func parsePeers(data []byte) (*peers, error) {
	p := &peers{}
	var cluster []byte
	var key crypto.Signer
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case clusterBlock:
			cluster = block.Bytes
		case certBlock:
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("parse authority: %w", err)
			}
			p.trusted = append(p.trusted, cert)
		case keyBlock:
			var err error
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, err
			}
		case gossipBlock:
			p.gossip = append(p.gossip, block.Bytes)
		}
	}
	if len(cluster) != sha256.Size {
		return nil, fmt.Errorf("no %q block in it", clusterBlock)
	}
	p.cluster = [sha256.Size]byte(cluster)
	if len(p.trusted) == 0 || key == nil {
		return nil, errors.New("no authority and key in it")
	}
	p.signer = &authority{cert: p.trusted[0], key: key}
	return p, p.valid()
}

func (p *peers) valid() error {
	switch {
	case !sameKey(p.signer.cert, p.signer.key):
		return errKeyMismatch
	case len(p.trusted) > maxPeerParts || len(p.gossip) > maxPeerParts:
		return fmt.Errorf("more than %d authorities or gossip keys in it", maxPeerParts)
	case len(p.gossip) == 0:
		return fmt.Errorf("no %q block in it", gossipBlock)
	}
	for _, cert := range p.trusted {
		if !cert.IsCA {
			return errors.New("not the certificate of an authority")
		}
	}
	for _, key := range p.gossip {
		if len(key) != GossipKeyBytes {
			return fmt.Errorf("a gossip key has %d bytes, not %d", len(key), GossipKeyBytes)
		}
	}
	return nil
}

// readPeers loads the file, nil when there is none.
func readPeers(dir string) (*peers, error) {
	path := filepath.Join(dir, peersFile)
	data, err := readFile(path)
	if err != nil || data == nil {
		return nil, err
	}
	p, err := parsePeers(data)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w; restore it from a backup or another member", path, err)
	}
	return p, nil
}

// ensurePeers loads what members recognise each other by, or makes it for a new
// cluster, and keeps this node's certificate good.
func (e *ensurer) ensurePeers() error {
	p, err := readPeers(e.dir)
	if err != nil {
		return err
	}
	path := filepath.Join(e.dir, peersFile)
	if p == nil {
		leaf, err := readFile(e.pair(peerBase).Cert)
		if err != nil {
			return err
		}
		if leaf != nil {
			return fmt.Errorf("read %s: it is missing while %s is there; restore it from a backup or another member", path, e.pair(peerBase).Cert)
		}
		if p, err = newPeers(e.now); err != nil {
			return err
		}
		data, err := p.encode()
		if err != nil {
			return err
		}
		if err := writeFile(path, data); err != nil {
			return err
		}
	}
	if err := p.signer.usable(e.now); err != nil {
		return fmt.Errorf("use %s: %w", path, err)
	}
	e.bundle.Peers, e.bundle.Cluster = path, p.id()
	e.bundle.Peer, err = e.ensurePair(peerBase, p.signer, peerLeaf(e.params.NodeName))
	return err
}

func peerLeaf(node string) leaf { return leaf{user: node, peer: true} }

// Pin is the hash of an authority's public key, as a token carries it.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// ClusterID returns the id of the cluster that dir holds the keys of, empty
// when it holds none.
func ClusterID(dir string) (string, error) {
	p, err := readPeers(dir)
	if err != nil || p == nil {
		return "", err
	}
	return p.id(), nil
}

// NewPeers makes what the members of a new cluster recognise each other by:
// [Material.Peers].
func NewPeers(now time.Time) ([]byte, error) {
	p, err := newPeers(now)
	if err != nil {
		return nil, err
	}
	return p.encode()
}
