package gossip

import (
	"maps"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Status is what one node knows of the cluster, for people and for tests.
type Status struct {
	Self      string         `json:"self"`
	Cluster   string         `json:"cluster"`
	Leader    string         `json:"leader"` // empty: none
	Term      uint64         `json:"term"`   // leaders this node has seen since it started
	TermSince time.Time      `json:"termSince,omitzero"`
	Digest    string         `json:"digest"` // of the replicated content
	Revision  int64          `json:"revision"`
	Vector    crdt.Vector    `json:"vector"`
	Stable    crdt.Vector    `json:"stable,omitempty"` // what every known member has
	Members   []MemberStatus `json:"members"`
	Acks      AckCounts      `json:"acks"`
	Refused   RefuseCounts   `json:"refused"`
}

// MemberStatus is a member and the replication between it and this node.
type MemberStatus struct {
	Member
	// Behind counts the changes that the member has, as last heard, and this
	// node has not; Ahead the opposite.
	Behind uint64 `json:"behind"`
	Ahead  uint64 `json:"ahead"`
	// Follows: this node tails the member. Followed: the member tails this node.
	Follows  bool `json:"follows"`
	Followed bool `json:"followed"`
	// Acked is the last of this node's revisions that the member has on disk.
	Acked       int64     `json:"acked,omitempty"`
	LastContact time.Time `json:"lastContact,omitzero"`
	Digest      string    `json:"digest,omitempty"` // as last heard
	// Differs: it had another digest with the same vector. That is a bug.
	Differs     bool          `json:"differs,omitempty"`
	RoundTrip   time.Duration `json:"roundTripNs,omitempty"`
	ClockOffset time.Duration `json:"clockOffsetNs,omitempty"` // its clock minus this node's
	OffsetBound time.Duration `json:"offsetBoundNs,omitempty"` // how far the offset may be wrong
	Error       string        `json:"error,omitempty"`         // why it is not tailed just now
}

// AckCounts count how local writes were acknowledged.
type AckCounts struct {
	Peer       uint64 `json:"peer"`       // a peer had it on disk
	Alone      uint64 `json:"alone"`      // no peer was live, or every live one had been passed over
	TimedOut   uint64 `json:"timedOut"`   // no live peer answered in time
	PassedOver uint64 `json:"passedOver"` // times a live peer did not answer in time
}

// RefuseCounts count what was turned away at the port.
type RefuseCounts struct {
	Strangers uint64 `json:"strangers"` // no or wrong certificate, or no TLS at all
	Busy      uint64 `json:"busy"`      // too many handshakes under way
	Packets   uint64 `json:"packets"`   // datagrams that are not the cluster's
}

// digest returns the digest of the replica and the vector that it belongs to,
// nothing while both are changing.
func (a *Agent) digest() (string, crdt.Vector) {
	for range 3 {
		before := a.cfg.Store.Vector()
		d := a.cfg.Store.Digest()
		if after := a.cfg.Store.Vector(); maps.Equal(before, after) {
			return d, after
		}
	}
	return "", nil
}

// Status returns what this node knows of the cluster.
func (a *Agent) Status() Status {
	digest, vector := a.digest()
	if vector == nil {
		digest, vector = a.cfg.Store.Digest(), a.cfg.Store.Vector()
	}
	s := Status{
		Self: a.cfg.Name, Cluster: a.cfg.Cluster, Digest: digest, Revision: a.cfg.Store.Revision(),
		Vector: vector.Clone(), Stable: a.stability.get().Clone(), Acks: a.acks.count(),
	}
	a.mu.Lock()
	s.Leader, s.Term, s.TermSince = a.leader, a.term, a.since
	r := a.running
	a.mu.Unlock()
	if r != nil {
		s.Refused = r.port.Refused()
		s.Refused.Packets = r.transport.foreign.Load()
	}
	for _, m := range a.Members() {
		ms := MemberStatus{Member: m}
		if !m.Self {
			a.link(m.Name).report(&ms, vector, digest)
			ms.Acked = a.acks.acked(m.Name)
		}
		s.Members = append(s.Members, ms)
	}
	return s
}

// clocksApart reports whether clocks are so far apart that it should be told: of
// edits on both sides of a cut, those of the clock ahead stay.
func clocksApart(offset time.Duration) bool { return offset.Abs() > 5*time.Minute }

// ClocksApart reports whether the member's clock and this node's are far apart.
func (s *MemberStatus) ClocksApart() bool { return clocksApart(s.ClockOffset) }

// report adds what the link knows.
func (l *link) report(s *MemberStatus, own crdt.Vector, digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Behind, s.Ahead = distance(own, l.vector), distance(l.vector, own)
	s.Follows, s.Followed = l.connected, l.followers > 0
	s.LastContact, s.Error = l.contact, l.err
	s.Digest = l.digest
	s.Differs = l.digest != "" && l.digest != digest && maps.Equal(l.digestOf, own)
	s.RoundTrip, s.ClockOffset, s.OffsetBound = l.roundTrip, l.offset, l.roundTrip/2
}
