package gossip

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
)

// The protocols that share the port, as TLS negotiates them (ALPN).
const (
	ProtocolGossip = "moot-gossip" // memberlist's streams
	ProtocolStore  = "moot-store"  // replication
	ProtocolJoin   = "moot-join"   // a node that is no member yet; the client is unauthenticated
)

// Network carries an agent's traffic: real sockets, or one in memory in tests
// and simulations.
type Network interface {
	// Open takes the one port of a node.
	Open(Endpoint) (Port, error)
}

// Endpoint says what a [Port] is to be.
type Endpoint struct {
	Name     string // of the node
	Bind     netip.AddrPort
	Identity func() (*tls.Certificate, *x509.CertPool, error)
	Known    func(netip.Addr) bool // whether a member is known to have the address
	Log      *slog.Logger
}

// Stream is an accepted connection. Peer is the name that the other end has
// proved, empty for [ProtocolJoin].
type Stream struct {
	net.Conn
	Peer     string
	Protocol string
}

// Port is one open port: authenticated streams and datagrams.
type Port interface {
	// Serve accepts streams until Close, and calls handle for each in a
	// goroutine of its own. It returns once all of them have.
	Serve(handle func(Stream)) error
	// Dial opens a stream to the member called name; to any member when name is
	// empty. It returns the name that the other end has proved.
	Dial(ctx context.Context, to netip.AddrPort, name, protocol string) (net.Conn, string, error)
	// ReadPacket waits for a datagram.
	ReadPacket(b []byte) (int, netip.AddrPort, error)
	// WritePacket sends one. It does not wait.
	WritePacket(b []byte, to netip.AddrPort) error
	// Refused counts what was turned away.
	Refused() RefuseCounts
	// Close closes the port and every stream of it, given away or not.
	Close() error
}
