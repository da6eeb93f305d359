package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/crdt"
)

// Errors a caller branches on.
var (
	// ErrForgotten: the cluster has forgotten deletes that this replica never
	// saw. It must be wiped and bootstrapped; see [Agent.Serving].
	ErrForgotten = errors.New("replica was away for too long and must be wiped and bootstrapped")
	// ErrRefused: the cluster does not take this node: an older member has its
	// name, or it is of another major version. Run ends with it.
	ErrRefused = errors.New("refused by the cluster")
)

// Agent is this node's part in the cluster. Its methods may be called from many
// goroutines.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	started time.Time // what its age is counted from

	ready     chan struct{}
	setReady  func()
	changed   signal
	readers   subscribers
	look      signal // for the membership loop
	advanced  subscribers
	events    chan serf.Event
	stale     atomic.Bool // serf has news
	refreshes chan chan struct{}
	acks      *ackQueue
	stability stability
	claims    claims
	replica   life
	catching  shared        // by reads
	bulk      chan struct{} // held by the one stream that catches up on much
	phase     atomic.Int32  // phaseEntering and on
	end       chan error    // why Run ends, if not for its context
	announce  sync.Mutex    // held while the card is changed and broadcast

	mu      sync.Mutex
	running *running // nil unless Run runs
	card    card
	members map[string]Member
	leader  string
	term    uint64
	since   time.Time // of the term
	links   map[string]*link

	liveOrigins map[crdt.Origin]bool // of the other live members
	failed      map[string]bool      // members that serf holds dead
	sparse      bool                 // there are too many members to tail them all
}

// running is what exists while [Agent.Run] runs.
type running struct {
	ctx       context.Context
	port      Port
	transport *transport
	serf      *serf.Serf
	gate      *gate
	keyring   *memberlist.Keyring
	joining   chan struct{} // held while serf joins
	joined    atomic.Bool   // some other member took this node
}

// New returns an agent; [Agent.Run] starts it.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Network == nil {
		cfg.Network = sockets{}
	}
	a := &Agent{
		cfg:     cfg,
		log:     cfg.Log,
		started: time.Now(),
		ready:   make(chan struct{}),
		changed: newSignal(),
		look:    newSignal(),
		events:  make(chan serf.Event, 256),

		catching: shared{asked: newSignal()},
		bulk:     make(chan struct{}, 1),

		refreshes: make(chan chan struct{}),
		end:       make(chan error, 1),
		card:      card{number: cfg.Number, origin: cfg.Store.Origin(), birth: cfg.Birth, api: cfg.API, version: cfg.Version},
		links:     make(map[string]*link),
	}
	a.setReady = sync.OnceFunc(func() { close(a.ready) })
	a.acks = newAckQueue(cfg.AckWait)
	a.members = map[string]Member{cfg.Name: a.self(a.started)}
	a.leader, a.term, a.since = cfg.Name, 1, a.started
	return a, nil
}

// Run takes part in the cluster until ctx ends. It ends with [ErrRefused] or
// [ErrForgotten] when the cluster will not have this node as it is. It is
// called once.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	port, err := a.cfg.Network.Open(Endpoint{
		Name: a.cfg.Name, Bind: a.cfg.Bind, Identity: a.cfg.Identity, Known: a.knownAddress, Log: a.log,
	})
	if err != nil {
		return fmt.Errorf("open gossip port: %w", err)
	}
	r := &running{ctx: ctx, port: port, joining: make(chan struct{}, 1), transport: newTransport(ctx, port, a.advertise(), label(a.cfg.Cluster), a.log)}
	g.Go(r.transport.receive)
	if err := a.newSerf(r); err != nil {
		_ = r.transport.Shutdown()
		return errors.Join(err, port.Close(), g.Wait())
	}
	a.mu.Lock()
	a.running = r
	a.mu.Unlock()
	g.Go(func() error { return port.Serve(func(s Stream) { a.accept(ctx, r, s) }) })
	g.Go(func() error { return a.drainEvents(r.serf) })
	g.Go(func() error { return a.watchMembers(ctx, r) })
	g.Go(func() error { return a.rejoin(ctx, r) })
	g.Go(func() error { return a.acks.run(ctx) })
	g.Go(func() error { return a.keepStable(ctx) })
	g.Go(func() error { a.catching.run(ctx, a.CatchUp); return nil })
	g.Go(func() error {
		var err error
		select {
		case <-ctx.Done():
		case err = <-a.end:
		}
		a.mu.Lock()
		a.running = nil
		a.mu.Unlock()
		return errors.Join(err, r.serf.Shutdown(), r.transport.Shutdown(), port.Close())
	})
	err = g.Wait()
	a.acks.close()
	return err
}

// stop ends Run with err.
func (a *Agent) stop(err error) {
	select {
	case a.end <- err:
	default:
	}
}

// accept sends an accepted stream where it belongs.
func (a *Agent) accept(ctx context.Context, r *running, s Stream) {
	switch s.Protocol {
	case ProtocolGossip:
		r.transport.hand(s.Conn)
	case ProtocolStore:
		a.serve(ctx, s)
	case ProtocolJoin:
		if a.cfg.Join != nil {
			a.cfg.Join(s.Conn)
			return
		}
		_ = s.Close()
	}
}

// drainEvents keeps serf from waiting for its reader. Events are hints: what
// there is to know is read from serf itself.
func (a *Agent) drainEvents(s *serf.Serf) error {
	for {
		select {
		case <-a.events:
			a.stale.Store(true)
			a.look.fire()
		case <-s.ShutdownCh():
			return nil
		}
	}
}

// current returns what runs, nil when nothing does.
func (a *Agent) current() *running {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running
}

// link returns the link to a peer, made at first use.
func (a *Agent) link(name string) *link {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.links[name]
	if !ok {
		l = &link{name: name, poke: a.look.fire}
		a.links[name] = l
	}
	return l
}

// self is this node as a member.
func (a *Agent) self(now time.Time) Member {
	c := a.card
	m := Member{
		Name: a.cfg.Name, Number: c.number, Origin: c.origin, Birth: c.birth,
		Addr: a.advertise(), API: c.api, Version: c.version, NoPods: c.noPods, State: StateAlive, Self: true,
	}
	switch {
	case c.leaving:
		m.State = StateLeft
	case now.Before(c.restart):
		m.State, m.Until = StateRestarting, c.restart
	}
	return m
}

// Ready is closed once the port is open and the first try to reach the cluster
// is over, whether or not it succeeded: a node that boots alone is ready alone.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// What an agent may do to its replica when the cluster has left it behind.
const (
	phaseEntering  = iota // nothing: that is not decided yet
	phaseBootstrap        // wipe it in place
	phaseServing          // end Run
)

// Serving tells that the replica is being served from. From then on an agent
// whose replica the cluster has left behind ends Run with [ErrForgotten]; it
// wipes the replica in place only between Bootstrap and Serving. It reports false,
// and changes nothing, for a replica that was wiped and is not filled yet: that is
// Bootstrap's to do.
func (a *Agent) Serving() bool {
	if !a.replica.serve(a.cfg.Store) {
		return false
	}
	a.phase.Store(phaseServing)
	return true
}

// Members returns every known member, this node included, the dead ones too,
// in order of name.
func (a *Agent) Members() []Member {
	a.mu.Lock()
	defer a.mu.Unlock()
	return sorted(a.members)
}

// Changed fires after the members, a state or the leader have changed. It is
// level-triggered and holds one signal: re-read after each. It is for one
// reader; see [Agent.Subscribe] for more.
func (a *Agent) Changed() <-chan struct{} { return a.changed }

// Subscribe returns a channel that fires as [Agent.Changed] does, until cancel
// is called.
func (a *Agent) Subscribe() (changed <-chan struct{}, cancel func()) { return a.readers.add() }

// Leader returns the member that leads, by this node's view; see [Elect].
func (a *Agent) Leader() (Member, bool) { return Elect(a.Members()) }

// Hold is the store's acknowledgement hook: it calls release once a live peer
// has revision rev on disk, after Config.AckWait, or at once when no peer is
// live. It does not block.
func (a *Agent) Hold(rev int64, release func()) { a.acks.hold(rev, release) }

// SetNoPods tells the members whether this node's kubelet is down: its pods are
// not looked after then, though the node lives.
func (a *Agent) SetNoPods(down bool) error {
	return a.setCard(func(c *card) { c.noPods = down })
}

// SetNumber changes the node number that members are told.
func (a *Agent) SetNumber(n crdt.NodeNumber) error {
	return a.setCard(func(c *card) { c.number = n })
}
