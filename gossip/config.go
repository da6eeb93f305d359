package gossip

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Config is what an [Agent] needs to know. Use [DefaultConfig] and change what
// differs.
type Config struct {
	// Name is the node's name, unique in the cluster. The certificate of
	// Identity carries it as common name.
	Name string
	// Number goes into the node's revisions; unique in the cluster.
	Number crdt.NodeNumber
	// Birth is when this daemon started by its own clock, which members that have
	// run for longer put right if need be. The oldest live birth leads.
	Birth crdt.Stamp
	// Cluster is the cluster's id. Members of another are refused.
	Cluster string
	// Version is the program's version; another major version is refused.
	Version string

	// Bind is the address of the one port, TCP and UDP. Advertise is where
	// peers reach it; the zero value means Bind. API is where this node's API
	// server answers; peers read it from the tags.
	Bind, Advertise, API netip.AddrPort

	// Identity returns the certificate and key of this node and the authority
	// that signed the peers'. It is asked at every handshake, so keys rotate
	// without a restart.
	Identity func() (*tls.Certificate, *x509.CertPool, error)
	// Keys are the gossip keys, 32 bytes each. The first encrypts, all decrypt.
	Keys [][]byte
	// Seeds returns addresses of members to try, beside those remembered in the
	// store. It may return none, and this node's own address.
	Seeds func() []netip.AddrPort

	// Store is replicated.
	Store Replica
	// Join is handed each connection of a node that wants to become a member:
	// TLS with this node's certificate, the client unauthenticated. It owns the
	// connection and runs in a goroutine of its own; Run waits for it, so it
	// ends once the connection is closed. Nil closes such connections.
	Join func(net.Conn)

	// Network carries the traffic: nil for real sockets.
	Network Network
	// Now reads the wall clock.
	Now func() time.Time
	// Log receives what an operator should know.
	Log *slog.Logger

	// AckWait is how long a write waits for the first peer before it is
	// acknowledged alone.
	AckWait time.Duration
	// Heartbeat is how often an idle replication stream speaks. A peer silent
	// for SuspectAfter is suspected by this node; one that serf declared dead is
	// believed to be after DeadAfter.
	Heartbeat, SuspectAfter, DeadAfter time.Duration
	// CatchUpWait bounds, for each member, the wait of CatchUp.
	CatchUpWait time.Duration
	// FillWait is how long a wiped replica waits for a member that has what was
	// wiped, while others are there.
	FillWait time.Duration
	// Mesh is up to how many members all tail each other; beyond it each tails
	// Degree others.
	Mesh, Degree int
}

// DefaultConfig returns the configuration to start from. Name, Number, Birth,
// Cluster, Version, Bind, Identity, Keys and Store are still to be set.
func DefaultConfig() Config {
	return Config{
		Seeds:        func() []netip.AddrPort { return nil },
		Now:          time.Now,
		Log:          slog.New(slog.DiscardHandler),
		AckWait:      500 * time.Millisecond,
		Heartbeat:    250 * time.Millisecond,
		SuspectAfter: 800 * time.Millisecond,
		DeadAfter:    2500 * time.Millisecond,
		CatchUpWait:  3 * time.Second,
		FillWait:     time.Minute,
		Mesh:         10,
		Degree:       5,
	}
}

// Validate reports the first thing wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Name == "" || len(c.Name) > 128:
		return fmt.Errorf("validate gossip config: name %q is not of 1 to 128 bytes", c.Name)
	case c.Number == 0:
		return errors.New("validate gossip config: no node number")
	case c.Birth == 0:
		return errors.New("validate gossip config: no birth stamp")
	case c.Cluster == "" || len(c.Cluster) > 200:
		return fmt.Errorf("validate gossip config: cluster id %q is not of 1 to 200 bytes", c.Cluster)
	case !c.Bind.IsValid():
		return errors.New("validate gossip config: no address to bind")
	case c.Identity == nil || c.Store == nil || c.Now == nil || c.Log == nil || c.Seeds == nil:
		return errors.New("validate gossip config: no identity, store, clock, logger or seeds")
	case c.AckWait <= 0 || c.Heartbeat <= 0 || c.CatchUpWait <= 0 || c.FillWait <= 0:
		return errors.New("validate gossip config: a wait is not positive")
	case c.SuspectAfter < 2*c.Heartbeat:
		return fmt.Errorf("validate gossip config: suspect after %v is below two heartbeats of %v", c.SuspectAfter, c.Heartbeat)
	case c.DeadAfter < 2*c.SuspectAfter:
		return fmt.Errorf("validate gossip config: dead after %v is below twice the time to suspect, %v", c.DeadAfter, c.SuspectAfter)
	case c.Mesh < 2 || c.Degree < 2:
		return errors.New("validate gossip config: mesh and degree are at least 2")
	}
	return validKeys(c.Keys)
}

func validKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("validate gossip keys: there are none")
	}
	for i, key := range keys {
		if len(key) != 32 {
			return fmt.Errorf("validate gossip keys: key %d has %d bytes, not 32", i, len(key))
		}
	}
	return nil
}
