package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

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

// Frame is a piece of what a replica holds, on its way to a peer.
type Frame struct {
	// Records are to be applied in order.
	Records []*crdt.Record
	// Vector is what a replica includes once it has applied the frames up to
	// this one: upTo of [Store.Apply]. Nil within a cut.
	Vector crdt.Vector
	// Revision is the sender's; everything up to it has been sent, but for
	// what the peer was known to have. Zero within a cut.
	Revision int64
	// Cut marks a part of a cut but the last: the records are in no causal
	// order until the cut is whole.
	Cut bool
}

// Digest sums up the visible content of the replicated durable keys. Replicas
// that hold the same have the same digest, whatever the order they got it in.
type Digest struct {
	Sum  uint64
	Keys int64
}

// String returns the digest in hexadecimal, for comparison.
func (d Digest) String() string { return fmt.Sprintf("%016x-%d", d.Sum, d.Keys) }

// Origins returns the incarnations this store draws its dots from: of the
// changes on disk, and of those kept in memory, new at every start.
func (s *Store) Origins() (durable, memory crdt.Origin) { return s.origin, 0 }

// Vector returns what this replica includes: with origin o at n, all replicated
// changes of o up to n. The caller must not change it.
func (s *Store) Vector() crdt.Vector { return nil }

// Digest returns the digest of what is visible.
func (s *Store) Digest() Digest { return Digest{} }

// Apply takes in changes of a peer, in the order it sent them, as one step that
// readers see whole. Each that changes something gets the next local revision.
// upTo is what the replica includes after them, nil to claim nothing yet; see
// [Frame]. It returns once the changes are durable and visible.
//
// It fails with [ErrRejected] when a record is none that a peer may send, and
// with [crdt.ErrDrift] when a stamp is further ahead of the local clock than
// Config.MaxDrift. Nothing is applied then.
func (s *Store) Apply(ctx context.Context, records []*crdt.Record, upTo crdt.Vector) error {
	return nil
}

// Tail streams to a peer what it lacks. Its methods but Acked belong to one
// goroutine.
type Tail struct {
	// Delay says how long a change of an origin may wait for the peer to get it
	// from elsewhere: see [Tail.Acked]. Nil for none. Set it before Next.
	Delay func(crdt.Origin) time.Duration
}

// Tail returns what `have` lacks: the history in this replica's order if it
// reaches back far enough, else the newest state of each key as one cut; and
// then what comes. It fails with [ErrForgotten] when `have` is not empty and
// lacks a delete that is no longer remembered.
func (s *Store) Tail(ctx context.Context, have crdt.Vector) (*Tail, error) { return nil, nil }

// Next returns the next frame, waiting for one. A frame holds at least one
// record or news of the vector, and its records are about [FrameBytes] at most.
// It fails with [ErrClosed] when the store closes, and as ctx does.
func (t *Tail) Next(ctx context.Context) (Frame, error) { return Frame{}, nil }

// Acked tells the tail what the peer includes by now, so that it is not sent.
// A frame from the peer says so as well as its acknowledgement.
func (t *Tail) Acked(have crdt.Vector) {}

// Close lets go of what the tail holds.
func (t *Tail) Close() {}

// SetStable says which changes all known members include: their tombstones may
// go. A node without peers passes its own vector after every change, or a
// vector that covers all.
func (s *Store) SetStable(v crdt.Vector) {}

// SetNode changes the node number that goes into revisions from now on.
func (s *Store) SetNode(ctx context.Context, n crdt.NodeNumber) error { return nil }

// Wipe takes everything replicated that covered includes out of the store, nil
// for all, so that it can be had anew from a peer whose vector covered is. What
// the peer does not know stays, and is claimed in the vector again once the
// replica includes covered. Watchers end with [ErrCompacted], and the past is
// compacted.
func (s *Store) Wipe(ctx context.Context, covered crdt.Vector) error { return nil }

// Conflicts returns what lost in merges and is kept to be seen, oldest first.
func (s *Store) Conflicts(ctx context.Context) ([]crdt.Conflict, error) { return nil, nil }

// NewIncarnation makes the next start of the store in dir begin a new
// incarnation. It is for a directory that was restored from a backup.
func NewIncarnation(fs vfs.FS, dir string) error { return nil }
