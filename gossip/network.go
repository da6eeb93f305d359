package gossip

import (
	"context"
	"net"
	"net/netip"
)

// Network carries an agent's traffic: real sockets, or one in memory in tests
// and simulations.
type Network interface {
	// Listen opens the one port for TCP and UDP.
	Listen(addr netip.AddrPort) (net.Listener, net.PacketConn, error)
	// Dial opens a stream.
	Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error)
}
