package gossip

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// errStranger: the other end is not a member, or not the one that was called.
var errStranger = errors.New("not a member of this cluster")

// serverTLS returns the TLS configuration of the port. The protocol that the
// client asks for decides what it must prove.
func serverTLS(identity func() (*tls.Certificate, *x509.CertPool, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(hello.SupportedProtos) != 1 {
				return nil, fmt.Errorf("%w: %d protocols offered", errStranger, len(hello.SupportedProtos))
			}
			protocol := hello.SupportedProtos[0]
			if !slices.Contains([]string{ProtocolGossip, ProtocolStore, ProtocolJoin}, protocol) {
				return nil, fmt.Errorf("%w: unknown protocol", errStranger)
			}
			cert, roots, err := identity()
			if err != nil {
				return nil, fmt.Errorf("read identity: %w", err)
			}
			cfg := &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{*cert},
				NextProtos:             []string{protocol},
				SessionTicketsDisabled: true, // each handshake asks for the identity as it is then
			}
			if protocol != ProtocolJoin {
				cfg.ClientAuth = tls.RequireAnyClientCert // and VerifyConnection verifies it
				cfg.VerifyConnection = func(s tls.ConnectionState) error {
					return verifyPeer(s, roots, "")
				}
			}
			return cfg, nil
		},
	}
}

// clientTLS returns the TLS configuration to call the member name with, any
// member when it is empty.
func clientTLS(identity func() (*tls.Certificate, *x509.CertPool, error), name, protocol string) (*tls.Config, error) {
	cert, roots, err := identity()
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*cert},
		NextProtos:   []string{protocol},
		// A peer is known by the common name of its certificate, not by an
		// address: VerifyConnection does what is skipped here.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != protocol {
				return fmt.Errorf("%w: protocol %q agreed", errStranger, s.NegotiatedProtocol)
			}
			return verifyPeer(s, roots, name)
		},
	}, nil
}

// verifyPeer checks that the peer has a certificate of the peer authority, for
// the name want unless that is empty.
func verifyPeer(s tls.ConnectionState, roots *x509.CertPool, want string) error {
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("%w: no certificate", errStranger)
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the authority signs nothing but peers
	}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("%w: %w", errStranger, err)
	}
	if name := peerName(s); name == "" || want != "" && name != want {
		return fmt.Errorf("%w: it is %q, not %q", errStranger, name, want)
	}
	return nil
}

// peerName is the name that the peer has proved: the common name of its
// certificate.
func peerName(s tls.ConnectionState) string { return s.PeerCertificates[0].Subject.CommonName }
