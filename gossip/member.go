package gossip

import (
	"net/netip"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// State is what this node holds of a member.
type State string

// The states of a member. Suspect is this node's own view (or a suspicion that
// is being gossiped); the others are the cluster's.
const (
	StateAlive      State = "alive"
	StateSuspect    State = "suspect"    // silent for now; may be back at once
	StateRestarting State = "restarting" // announced a restart; until Member.Until nothing moves
	StateDead       State = "dead"       // declared dead, or never seen since this node started
	StateLeft       State = "left"       // said goodbye
)

// Member is one node of the cluster, this one included, as this node sees it.
type Member struct {
	Name    string          `json:"name"`
	Number  crdt.NodeNumber `json:"number"`
	Origin  crdt.Origin     `json:"origin"`
	Birth   crdt.Stamp      `json:"birth"`
	Addr    netip.AddrPort  `json:"addr"` // of the one port
	API     netip.AddrPort  `json:"api"`
	Version string          `json:"version"`
	State   State           `json:"state"`
	Since   time.Time       `json:"since"`          // when State began, by this node's clock
	Until   time.Time       `json:"until,omitzero"` // end of the announced restart window
	Self    bool            `json:"self,omitempty"`
	NoPods  bool            `json:"noPods,omitempty"` // its kubelet is down
	// Unheard, of a dead member: this node has not heard of it since it started.
	Unheard bool `json:"unheard,omitempty"`
}

// Live reports whether the member takes part: alive, suspected or restarting.
func (m Member) Live() bool {
	return m.State == StateAlive || m.State == StateSuspect || m.State == StateRestarting
}
