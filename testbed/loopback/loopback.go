// Package loopback gives tests addresses of the loopback network that stay theirs.
//
// A port that the kernel chose, and that was closed again so that what is tested
// can listen on it, may be anyone's a moment later: the kernel gives it to the
// next connection of another test. So these lie below those that it chooses from,
// and each is claimed by name against other test processes.
package loopback

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// The bounds of what is given: above what daemons commonly listen on, below
// NodePorts (30000) and what Linux chooses from (32768).
const first, last = 12000, 29999

// Addr returns an address and port on 127.0.0.1 that nobody listens on, over TCP or UDP,
// and that is given to nobody else until the test ends.
func Addr(t testing.TB) netip.AddrPort {
	t.Helper()
	for number := first; number <= last; number++ {
		claim, err := net.Listen("unix", fmt.Sprintf("@moot-test-port-%d", number)) //nolint:noctx // returns at once
		if err != nil {
			continue // another test's
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(number))
		if listens(addr) {
			_ = claim.Close()
			continue
		}
		t.Cleanup(func() { _ = claim.Close() })
		return addr
	}
	t.Fatalf("no port from %d to %d is free", first, last)
	return netip.AddrPort{}
}

// listens reports whether someone does, on that address or on all.
func listens(addr netip.AddrPort) bool {
	tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", addr.Port())) //nolint:noctx // returns at once
	if err != nil {
		return true
	}
	_ = tcp.Close()
	udp, err := net.ListenPacket("udp", fmt.Sprintf(":%d", addr.Port())) //nolint:noctx // returns at once
	if err != nil {
		return true
	}
	_ = udp.Close()
	return false
}
