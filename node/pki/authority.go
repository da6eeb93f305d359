package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// backdate lets a certificate be used at once by a member whose clock is
	// behind the issuer's.
	backdate = 24 * time.Hour
)

// authority is a certificate authority with its key. Every member of the
// cluster holds the same ones.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// ensureAuthority loads the authority at base.crt and base.key, or makes it
// when neither exists.
func ensureAuthority(dir, base, name string, now time.Time) (*authority, error) {
	certPath, keyPath := filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")
	certPEM, err := readFile(certPath)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(keyPath)
	if err != nil {
		return nil, err
	}
	switch {
	case certPEM != nil && keyPEM == nil:
		return nil, fmt.Errorf("read %s: it is missing while %s is there; restore it from a backup or another member", keyPath, certPath)
	case certPEM != nil:
		a, err := parseAuthority(certPEM, keyPEM)
		if err != nil {
			return nil, fmt.Errorf("load %s and its key: %w; restore both from a backup or another member", certPath, err)
		}
		if err := a.usable(now); err != nil {
			return nil, fmt.Errorf("use %s: %w", certPath, err)
		}
		return a, nil
	}
	// Neither, or a key alone: making them was cut short before the
	// certificate, and the same key goes on.
	var key crypto.Signer
	if keyPEM != nil {
		if key, err = decodeKey(keyPEM); err != nil {
			return nil, fmt.Errorf("load %s: %w; no certificate was issued with it, remove it", keyPath, err)
		}
	} else {
		if key, err = newKey(); err != nil {
			return nil, err
		}
		if keyPEM, err = encodeKey(key); err != nil {
			return nil, err
		}
		if err := writeFile(keyPath, keyPEM); err != nil {
			return nil, err
		}
	}
	a, err := newAuthority(key, name, now)
	if err != nil {
		return nil, err
	}
	return a, writeFile(certPath, encodeCert(a.cert))
}

func parseAuthority(certPEM, keyPEM []byte) (*authority, error) {
	cert, err := decodeCert(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !sameKey(cert, key) {
		return nil, errKeyMismatch
	}
	if !cert.IsCA {
		return nil, errors.New("not the certificate of an authority")
	}
	return &authority{cert: cert, key: key}, nil
}

func (a *authority) usable(now time.Time) error {
	switch {
	case now.After(a.cert.NotAfter):
		return fmt.Errorf("it expired on %s; check the clock, or replace it and its key on every member and start them again",
			a.cert.NotAfter.Format(time.DateOnly))
	case now.Before(a.cert.NotBefore):
		return fmt.Errorf("it is valid from %s but the clock says %s; set the clock",
			a.cert.NotBefore.Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	return nil
}

// newAuthority self-signs a certificate for key. The name carries a hash of the
// key, so that two clusters' authorities are told apart.
func newAuthority(key crypto.Signer, name string, now time.Time) (*authority, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	hash := sha256.Sum256(der)
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("%s-%x", name, hash[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          hash[:20],
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("issue authority %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("issue authority %s: %w", name, err)
	}
	return &authority{cert: cert, key: key}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
