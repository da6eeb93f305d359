package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/mootkube/moot/node/pki"
)

// Dialer asks a member to let this machine in.
type Dialer struct {
	Token   Token
	Request Request // Protocol, Token and Time are filled in

	Now func() time.Time // default time.Now
	// Dial opens the connection; default TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Errors a caller branches on, beside [*Refusal].
var (
	// ErrUnreachable: nobody answered; trying again may help.
	ErrUnreachable = errors.New("no member answers there")
	// ErrNotTheCluster: who answered is not of the cluster the token is for.
	// The secret was not sent.
	ErrNotTheCluster = errors.New("not a member of the cluster that the token is for")
)

// Temporary reports whether what [Dialer.Do] returned may be gone at the next
// try with no one doing anything about it.
func Temporary(err error) bool {
	refusal, ok := errors.AsType[*Refusal](err)
	return errors.Is(err, ErrUnreachable) || ok && (refusal.Reason == ReasonBusy || refusal.Reason == ReasonInternal)
}

// Do shakes hands with the member at address, host:port, once. It returns
// [ErrUnreachable], [ErrNotTheCluster] or a [*Refusal] when that is what
// happened. Asking again after a crash is safe.
func (d *Dialer) Do(ctx context.Context, address string) (*Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeWithin)
	defer cancel()
	dial := d.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	raw, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("join at %s: %w: %w", address, ErrUnreachable, err)
	}
	defer raw.Close() //nolint:errcheck // all has been read, or its error returned
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	grant, err := d.shake(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("join at %s: %w", address, err)
	}
	return grant, nil
}

func (d *Dialer) shake(ctx context.Context, raw net.Conn) (*Grant, error) {
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{Protocol},
		// The authority is known by the token's pin alone, and members'
		// certificates carry names, not addresses: VerifyConnection checks both.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyMember(s.PeerCertificates, d.Token.Pin) },
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		if errors.Is(err, ErrNotTheCluster) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if conn.ConnectionState().NegotiatedProtocol != Protocol {
		return nil, fmt.Errorf("%w: it does not know the protocol %s", ErrNotTheCluster, Protocol)
	}
	now := d.Now
	if now == nil {
		now = time.Now
	}
	req := d.Request
	req.Protocol, req.Token, req.Time = protocolVersion, d.Token.credential(), now().UTC()
	sendErr := writeMessage(conn, req)
	var a answer
	if err := readMessage(conn, maxAnswerBytes, &a); err != nil {
		if sendErr != nil {
			err = sendErr
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the member hung up; it may be busy with others: try again")
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return d.accept(a, now())
}

// accept checks what a member answered.
func (d *Dialer) accept(a answer, now time.Time) (*Grant, error) {
	switch {
	case a.Refusal != nil:
		return nil, a.Refusal
	case a.Protocol != protocolVersion || a.Grant == nil:
		return nil, refuse(ReasonProtocol, "the member speaks version %d of the handshake, this machine %d; run the same version of moot on both", a.Protocol, protocolVersion)
	case a.Time.Sub(now).Abs() > MaxClockSkew:
		return nil, clockRefusal(now, a.Time, "there")
	}
	g := a.Grant
	switch err := g.Material.Validate(); {
	case err != nil:
		return nil, fmt.Errorf("read grant: %w", err)
	case g.Material.ClusterID() != g.Cluster || g.Number == 0 || len(g.Peers) == 0:
		return nil, errors.New("read grant: it is not complete")
	case !g.Settings.ClusterCIDR.IsValid() || !g.Settings.ServiceCIDR.IsValid() || g.Settings.ClusterDomain == "":
		return nil, errors.New("read grant: the cluster's settings are not complete")
	}
	return g, nil
}

// verifyMember checks that the chain ends in the authority of the pin. The
// certificate's period is not looked at: this machine's clock may be wrong, and
// the answer to a wrong clock is the member's refusal, which names both.
func verifyMember(chain []*x509.Certificate, pin string) error {
	if len(chain) < 2 {
		return fmt.Errorf("%w: it shows no authority", ErrNotTheCluster)
	}
	authority := chain[len(chain)-1]
	if pki.Pin(authority) != pin {
		return fmt.Errorf("%w: another cluster's, or its keys were rotated since; make a token with `moot token create` on it", ErrNotTheCluster)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: chain[0].NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return fmt.Errorf("%w: %w", ErrNotTheCluster, err)
	}
	return nil
}
