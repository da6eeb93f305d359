package gossip

import (
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

// Replica is what an [Agent] replicates: one node's store, as [Replicate]
// makes it.
type Replica interface {
	Origin() crdt.Origin // incarnation of the durable changes
	Revision() int64
}

// Replicate returns the replica that s is.
func Replicate(s *store.Store) Replica { return s }
