package store

import (
	"context"
	"errors"

	"github.com/mootkube/moot/gossip/crdt"
)

// Errors of replication.
var (
	// ErrForgotten: the peer lacks deletes that nobody remembers any more, so
	// what it holds may be what was deleted. It must be wiped: [Store.Wipe].
	ErrForgotten = errors.New("replica lacks deletes that are forgotten")
	// ErrRejected: a peer sent what is no replicated change.
	ErrRejected = errors.New("change of a peer is rejected")
)

// SetNode changes the node number that goes into revisions from now on.
func (s *Store) SetNode(ctx context.Context, n crdt.NodeNumber) error {
	return s.submit(ctx, &request{do: func(c *committer, _ *batch) error {
		c.node = n
		return nil
	}})
}
