package gossip

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

// Replica is what an [Agent] replicates: one node's store, as [Replicate]
// makes it.
type Replica interface {
	// Origin is the incarnation of the durable changes.
	Origin() crdt.Origin
	// Revision is the newest visible revision.
	Revision() int64
	// Vector says which changes have been applied. It is not to be changed.
	Vector() crdt.Vector
	// Beyond says which changes are here, on disk, and not in the vector.
	Beyond() crdt.Vector
	// Apply applies a peer's changes, in its order, and joins upTo, unless nil,
	// into the vector. They are durable when it returns.
	Apply(ctx context.Context, records []*crdt.Record, upTo crdt.Vector) error
	// Tail delivers what have lacks, in the order of this replica, and goes on
	// live. Delay says how long a change of an origin may wait for the peer to
	// get it from elsewhere. It fails with [store.ErrForgotten] when have lacks
	// what this replica has forgotten.
	Tail(ctx context.Context, have crdt.Vector, delay func(crdt.Origin) time.Duration) (Tail, error)
	// SetStable says that every member has these changes.
	SetStable(crdt.Vector)
	// Digest is equal for replicas of equal content.
	Digest() string
	// Wipe takes out what covered includes, to be had anew.
	Wipe(ctx context.Context, covered crdt.Vector) error
	// Owed is what a peer must include to fill a wiped replica, nil for a whole
	// one. GiveUpOwed ends the wait for such a peer.
	Owed() crdt.Vector
	GiveUpOwed(ctx context.Context) error
	// Trust says that this replica includes all that its incarnation has written,
	// as far as any member knows. One whose disk may be an older one begins a new
	// incarnation otherwise.
	Trust(ctx context.Context) error

	// List returns the values of the keys below prefix. Delete deletes a key.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
	Delete(ctx context.Context, key string) error
}

// Tail is one reader of a replica's changes. Its methods but Acked belong to
// one goroutine.
type Tail interface {
	// Next waits for the next frame. Its records are shared: do not change them.
	Next(ctx context.Context) (store.Frame, error)
	// Acked says what the peer includes, so that it is not sent.
	Acked(crdt.Vector)
	Close()
}

// Replicate returns the replica that s is.
func Replicate(s *store.Store) Replica { return replica{s} }

type replica struct{ *store.Store }

func (r replica) Tail(ctx context.Context, have crdt.Vector, delay func(crdt.Origin) time.Duration) (Tail, error) {
	t, err := r.Store.Tail(ctx, have)
	if err != nil {
		return nil, err
	}
	t.Delay = delay
	return t, nil
}

func (r replica) Digest() string { return r.Store.Digest().String() }

func (r replica) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	end := prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
	result, err := r.Range(ctx, store.RangeRequest{Key: []byte(prefix), End: []byte(end)})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	out := make(map[string][]byte, len(result.KVs))
	for _, kv := range result.KVs {
		out[strings.TrimPrefix(string(kv.Key), prefix)] = kv.Value
	}
	return out, nil
}

func (r replica) Delete(ctx context.Context, key string) error {
	if _, err := r.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(key)}}}); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}
