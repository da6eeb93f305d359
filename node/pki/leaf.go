package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"
)

const (
	leafLife = 3 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is issued again: a
	// node started at least this often never sees one expire.
	renewBefore = leafLife / 2
)

// leaf says what a certificate is for: a member among members when peer is
// set, else a client's identity when names and addresses are empty, and a
// server's otherwise.
type leaf struct {
	user   string
	groups []string
	peer   bool // both client and server; the common name is the node's

	names     []string
	addresses []netip.Addr
}

func (l leaf) server() bool { return len(l.names)+len(l.addresses) > 0 }

func (l leaf) usages() []x509.ExtKeyUsage {
	switch {
	case l.peer:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	case l.server():
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	default:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
}

// issue makes a key and a certificate for l, as PEM.
func (a *authority) issue(l leaf, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: l.user, Organization: l.groups},
		NotBefore:    latest(now.Add(-backdate), a.cert.NotBefore),
		NotAfter:     earliest(now.Add(leafLife), a.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  l.usages(),
		DNSNames:     l.names,
		IPAddresses:  netIPs(l.addresses),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for %s: %w", l.user, err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for %s: %w", l.user, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return encodeCert(cert), keyPEM, nil
}

// fault says why the certificate and key are not, or not for much longer, what
// l asks for; it is empty when they are good.
func (a *authority) fault(l leaf, certPEM, keyPEM []byte, now time.Time) string {
	if certPEM == nil || keyPEM == nil {
		return "missing"
	}
	cert, err := decodeCert(certPEM)
	if err != nil {
		return "unreadable certificate"
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return "unreadable key"
	}
	switch {
	case !sameKey(cert, key):
		return errKeyMismatch.Error()
	case cert.CheckSignatureFrom(a.cert) != nil:
		return "other authority"
	case now.Before(cert.NotBefore):
		return "not yet valid"
	case now.After(cert.NotAfter):
		return "expired"
	case now.After(cert.NotAfter.Add(-renewBefore)) && cert.NotAfter.Before(a.cert.NotAfter):
		return "expires soon"
	case cert.Subject.CommonName != l.user || !slices.Equal(cert.Subject.Organization, l.groups):
		return "other identity"
	case !slices.Equal(cert.ExtKeyUsage, l.usages()):
		return "other usage"
	case !slices.Equal(cert.DNSNames, l.names) || !equalIPs(cert.IPAddresses, l.addresses):
		return "names or addresses changed"
	}
	return ""
}

// ensurePair keeps base.crt and base.key good for l.
func (e *ensurer) ensurePair(base string, a *authority, l leaf) (Pair, error) {
	pair := e.pair(base)
	certPEM, err := readFile(pair.Cert)
	if err != nil {
		return Pair{}, err
	}
	keyPEM, err := readFile(pair.Key)
	if err != nil {
		return Pair{}, err
	}
	why := a.fault(l, certPEM, keyPEM, e.now)
	if why == "" {
		return pair, nil
	}
	if certPEM, keyPEM, err = a.issue(l, e.now); err != nil {
		return Pair{}, err
	}
	if err := writeFile(pair.Key, keyPEM); err != nil {
		return Pair{}, err
	}
	if err := writeFile(pair.Cert, certPEM); err != nil {
		return Pair{}, err
	}
	e.note(base+".crt", why)
	return pair, nil
}

func (e *ensurer) pair(base string) Pair {
	return Pair{Cert: filepath.Join(e.dir, base+".crt"), Key: filepath.Join(e.dir, base+".key")}
}

func netIPs(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		ips = append(ips, a.AsSlice())
	}
	return ips
}

func equalIPs(ips []net.IP, addrs []netip.Addr) bool {
	return slices.EqualFunc(ips, addrs, func(ip net.IP, addr netip.Addr) bool {
		have, ok := netip.AddrFromSlice(ip)
		return ok && have.Unmap() == addr
	})
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
