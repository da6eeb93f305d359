package gossip

import (
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Status is what one node knows of the cluster, for people and for tests.
type Status struct {
	Self     string         `json:"self"`
	Cluster  string         `json:"cluster"`
	Leader   string         `json:"leader"`         // empty: none
	Term     uint64         `json:"term"`           // times this node has seen the leader change since it started
	TermFrom time.Time      `json:"termFrom,omitzero"`
	Digest   string         `json:"digest"` // of the replicated content
	Vector   map[crdt.Origin]uint64    `json:"vector"`
	Stable   map[crdt.Origin]uint64    `json:"stable,omitempty"` // what every known member has
	Members  []MemberStatus `json:"members"`
	Acks     AckCounts      `json:"acks"`
	Refused  RefuseCounts   `json:"refused"`
	Wipe     bool           `json:"wipe,omitempty"` // a peer has forgotten what this replica lacks: it must be wiped and bootstrapped
}

// MemberStatus is a member and the replication between it and this node.
type MemberStatus struct {
	Member
	// Behind counts the changes that the member has applied, as last heard, and
	// this node has not; Ahead the opposite.
	Behind uint64 `json:"behind"`
	Ahead  uint64 `json:"ahead"`
	// Follows: this node tails the member. Followed: the member tails this node.
	Follows  bool `json:"follows"`
	Followed bool `json:"followed"`
	// Acked is the last of this node's revisions that the member has on disk.
	Acked       int64         `json:"acked,omitempty"`
	LastContact time.Time     `json:"lastContact,omitzero"`
	Digest      string        `json:"digest,omitempty"` // as last heard
	Same        bool          `json:"same"`             // its digest and vector equal this node's
	RoundTrip   time.Duration `json:"roundTripNs,omitempty"`
	ClockOffset time.Duration `json:"clockOffsetNs,omitempty"` // its clock minus this node's
	OffsetBound time.Duration `json:"offsetBoundNs,omitempty"` // how far the offset may be wrong
	Error       string        `json:"error,omitempty"`         // why it cannot be tailed just now
}

// AckCounts count how local writes were acknowledged.
type AckCounts struct {
	Peer       uint64 `json:"peer"`       // a peer had it on disk
	Alone      uint64 `json:"alone"`      // no peer was live
	TimedOut   uint64 `json:"timedOut"`   // no live peer answered in time: alone
	PassedOver uint64 `json:"passedOver"` // live peers that had not answered by then
}

// RefuseCounts count what was turned away at the port.
type RefuseCounts struct {
	Strangers uint64 `json:"strangers"` // no or wrong certificate, or no TLS at all
	Busy      uint64 `json:"busy"`      // too many handshakes under way
	Packets   uint64 `json:"packets"`   // datagrams that are not the cluster's
}
