package gossip

import (
	"context"
	"errors"
	"time"
)

// Errors a caller branches on.
var (
	// ErrForgotten: the cluster has forgotten deletes that this replica never
	// saw. It must be wiped and bootstrapped; Run ends with it.
	ErrForgotten = errors.New("replica was away for too long and must be wiped and bootstrapped")
	// ErrRefused: the cluster does not take this node: another member has its
	// name or number, or it is of another cluster or major version. Run ends
	// with it.
	ErrRefused = errors.New("refused by the cluster")
)

// Agent is this node's part in the cluster. Its methods may be called from many
// goroutines.
type Agent struct {
	cfg     Config
	ready   chan struct{}
	changed chan struct{}
}

// New returns an agent; [Agent.Run] starts it.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, ready: make(chan struct{}), changed: make(chan struct{}, 1)}, nil
}

// Run takes part in the cluster until ctx ends. It ends with [ErrRefused] or
// [ErrForgotten] when the cluster will not have this node as it is.
func (a *Agent) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Ready is closed once the port is open and the first try to reach the cluster
// is over, whether or not it succeeded: a node that boots alone is ready alone.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Members returns every known member, this node included, the dead ones too,
// in order of name.
func (a *Agent) Members() []Member { return nil }

// Changed fires after the members, a state or the leader have changed. It is
// level-triggered and holds one signal: re-read after each. It is for one
// reader; see [Agent.Subscribe] for more.
func (a *Agent) Changed() <-chan struct{} { return a.changed }

// Subscribe returns a channel that fires as [Agent.Changed] does, until cancel
// is called.
func (a *Agent) Subscribe() (changed <-chan struct{}, cancel func()) { return a.changed, func() {} }

// Leader returns the member that leads, by this node's view; see [Elect].
func (a *Agent) Leader() (Member, bool) { return Elect(a.Members()) }

// CatchUp waits until this replica has what every reachable member had when it
// was asked. It gives each member Config.CatchUpWait to answer, and returns an
// error that names those that did not; what the others had is here regardless.
func (a *Agent) CatchUp(ctx context.Context) error { return nil }

// Bootstrap waits until the replica has all that one live peer had. It is for
// a new or wiped replica, before anything is served from it. A node that knows
// of no other member returns at once.
func (a *Agent) Bootstrap(ctx context.Context) error { return nil }

// Hold is the store's acknowledgement hook: it calls release once a live peer
// has revision rev on disk, after Config.AckWait, or at once when no peer is
// live. It does not block.
func (a *Agent) Hold(rev int64, release func()) { release() }

// Restarting announces that this node will be gone for at most window, and
// gives up leadership. Nothing is to be moved from it meanwhile. Zero takes the
// announcement back.
func (a *Agent) Restarting(window time.Duration) error { return nil }

// Leave hands over and says goodbye: it waits until a peer has everything this
// replica has, takes this node off the list of members, and leaves. Run goes on
// until its context ends.
func (a *Agent) Leave(ctx context.Context) error { return nil }

// Remove takes a dead member off the list for good. It refuses a live one.
func (a *Agent) Remove(name string) error { return nil }

// SetKeys replaces the gossip keys: the first encrypts, all decrypt.
func (a *Agent) SetKeys(keys [][]byte) error { return nil }

// Status returns what this node knows of the cluster.
func (a *Agent) Status() Status { return Status{} }
