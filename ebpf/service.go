package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that are balanced.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Side is where a connection comes from.
type Side uint8

// The sides.
const (
	Inside  Side = 0 // sockets on this node: pods and the host
	Outside Side = 1 // packets that reach this node from elsewhere
)

// Frontend is what clients connect to. The unspecified address of a family
// stands for every address of this node that [Balancer.SetAddresses] names: a
// NodePort.
type Frontend struct {
	Addr     netip.AddrPort
	Protocol Protocol
	Side     Side
}

func (f Frontend) String() string {
	side := "inside"
	if f.Side == Outside {
		side = "outside"
	}
	return fmt.Sprintf("%s %s from %s", f.Protocol, f.Addr, side)
}

// Backend is who answers.
type Backend struct {
	Addr  netip.AddrPort
	Local bool // runs on this node: its client's address can stay as it is
}

// Service is where a frontend leads: plain data, one port of one Service in one
// family.
type Service struct {
	Name     string    // "namespace/name:port", for people
	Backends []Backend // who takes new connections; the order does not matter
	// Draining are those that still answer, which need not leave out who takes new
	// connections: flows of datagrams from outside that were led to one stay with
	// it. TCP connections do anyway.
	Draining []Backend
	// Affinity is how long after its last connection a client comes back to the
	// same backend, in whole seconds; 0: each connection is free.
	Affinity time.Duration
	// Drop makes a frontend without backends say nothing. Otherwise it refuses.
	Drop bool
	// Sources, when not empty, are the only clients let in, from outside.
	Sources []netip.Prefix
}

// maxBackends is how many one frontend can have: what a Maglev table has room for.
const maxBackends = 65521

// plain says whether it is an address and port, with no zone, that is written in
// one way only.
func plain(at netip.AddrPort) bool {
	return at.IsValid() && at.Port() != 0 && at.Addr().Zone() == "" && !at.Addr().Is4In6()
}

// valid says whether frontend and service belong together.
func valid(f Frontend, s Service) error {
	if err := f.valid(); err != nil {
		return err
	}
	for _, b := range slices.Concat(s.Backends, s.Draining) {
		if !plain(b.Addr) || b.Addr.Addr().IsUnspecified() || b.Addr.Addr().Is4() != f.Addr.Addr().Is4() {
			return fmt.Errorf("frontend %s: backend %s: not an address and port of its family", f, b.Addr)
		}
	}
	if len(s.Backends) > maxBackends {
		return fmt.Errorf("frontend %s: %d backends, more than %d", f, len(s.Backends), maxBackends)
	}
	if len(s.Sources) > 0 && f.Side != Outside {
		return fmt.Errorf("frontend %s: clients are told by their addresses from outside only", f)
	}
	for _, p := range s.Sources {
		if !p.IsValid() {
			return fmt.Errorf("frontend %s: source %s: not a range of addresses", f, p)
		}
	}
	if s.Affinity < 0 {
		return fmt.Errorf("frontend %s: affinity %s: negative", f, s.Affinity)
	}
	return nil
}

func (f Frontend) valid() error {
	if !plain(f.Addr) {
		return fmt.Errorf("frontend %s: not an address and port", f)
	}
	if f.Protocol != TCP && f.Protocol != UDP {
		return fmt.Errorf("frontend %s: only TCP and UDP are balanced", f)
	}
	if f.Side != Inside && f.Side != Outside {
		return fmt.Errorf("frontend %s %s: side %d unknown", f.Protocol, f.Addr, f.Side)
	}
	return nil
}
