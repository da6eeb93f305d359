package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// The files of a member's identity, in its directory.
const (
	authorityFile = "authority.pem"
	certFile      = "cert.pem"
	keyFile       = "key.pem"
)

// identify gives each member a certificate of one authority made for the run.
func identify(members []member) error {
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return err
	}
	for _, m := range members {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return err
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(m.number) + 1), Subject: pkix.Name{CommonName: memberName(m.number)},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, authority, key.Public(), authorityKey)
		if err != nil {
			return err
		}
		err = errors.Join(
			writePEM(filepath.Join(m.dir, authorityFile), "CERTIFICATE", authorityDER),
			writePEM(filepath.Join(m.dir, certFile), "CERTIFICATE", der),
			writePEM(filepath.Join(m.dir, keyFile), "EC PRIVATE KEY", keyDER),
		)
		if err != nil {
			return fmt.Errorf("write identity of %s: %w", memberName(m.number), err)
		}
	}
	return nil
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// freePorts returns addresses of the loopback network that nobody listens on.
func freePorts(count int) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for range count {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)))
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // held until all are known, so that they differ
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return out, nil
}
