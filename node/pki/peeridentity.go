package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// PeerIdentity is what this node shows to other members and trusts of them, as
// the files have it now: a rotation needs no restart. Its methods may be called
// from many goroutines.
type PeerIdentity struct {
	bundle *Bundle

	mu     sync.Mutex
	seen   []fileMark
	cert   *tls.Certificate
	pool   *x509.CertPool
	keys   [][]byte
	signer *x509.Certificate
}

// fileMark tells whether a file was replaced: a rename gives a new inode.
type fileMark struct {
	info os.FileInfo
}

func (m fileMark) same(o fileMark) bool {
	return os.SameFile(m.info, o.info) && m.info.Size() == o.info.Size() && m.info.ModTime().Equal(o.info.ModTime())
}

// PeerIdentity loads the certificate, the authorities and the gossip keys.
func (b *Bundle) PeerIdentity() (*PeerIdentity, error) {
	i := &PeerIdentity{bundle: b}
	if err := i.load(); err != nil {
		return nil, err
	}
	return i, nil
}

// TLS returns this node's certificate, with that of its authority in the chain,
// and the authorities of all members. While the files are being replaced it
// returns what it had.
func (i *PeerIdentity) TLS() (*tls.Certificate, *x509.CertPool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.load(); err != nil {
		return nil, nil, err
	}
	return i.cert, i.pool, nil
}

// GossipKeys returns the gossip keys: the first encrypts, all decrypt.
func (i *PeerIdentity) GossipKeys() ([][]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.load(); err != nil {
		return nil, err
	}
	return i.keys, nil
}

// Pin is what a joining machine recognises this node by: the hash of the key of
// the authority that signed its certificate.
func (i *PeerIdentity) Pin() (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.load(); err != nil {
		return "", err
	}
	return Pin(i.signer), nil
}

// load reads the files when one was replaced. With something loaded before, an
// unreadable or half replaced set keeps it.
func (i *PeerIdentity) load() error {
	marks, err := i.marks()
	if err == nil && slices.EqualFunc(marks, i.seen, fileMark.same) {
		return nil
	}
	if err == nil {
		err = i.read()
	}
	switch {
	case err == nil:
		i.seen = marks
	case i.cert == nil:
		return fmt.Errorf("load the identity among members: %w", err)
	}
	return nil
}

func (i *PeerIdentity) marks() ([]fileMark, error) {
	var marks []fileMark
	for _, path := range []string{i.bundle.Peers, i.bundle.Peer.Cert, i.bundle.Peer.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		marks = append(marks, fileMark{info})
	}
	return marks, nil
}

func (i *PeerIdentity) read() error {
	data, err := os.ReadFile(i.bundle.Peers)
	if err != nil {
		return err
	}
	p, err := parsePeers(data)
	if err != nil {
		return fmt.Errorf("parse %s: %w", i.bundle.Peers, err)
	}
	cert, err := tls.LoadX509KeyPair(i.bundle.Peer.Cert, i.bundle.Peer.Key)
	if err != nil {
		return fmt.Errorf("load %s: %w", i.bundle.Peer.Cert, err)
	}
	pool := x509.NewCertPool()
	var signer *x509.Certificate
	for _, ca := range p.trusted {
		pool.AddCert(ca)
		if signer == nil && cert.Leaf.CheckSignatureFrom(ca) == nil {
			signer = ca
		}
	}
	if signer == nil {
		return errors.New("the certificate is of an authority that is not trusted")
	}
	cert.Certificate = append(cert.Certificate, signer.Raw)
	i.cert, i.pool, i.keys, i.signer = &cert, pool, p.gossip, signer
	return nil
}

// Expires is when the certificate shown to members ends.
func (i *PeerIdentity) Expires() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert.Leaf.NotAfter
}
