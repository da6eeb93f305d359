package store

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Bounds of a frame: it ends with the record that reaches one of them.
const (
	FrameBytes   = 1 << 20
	frameRecords = 4096
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

// Tail streams to a peer what it lacks. Its methods but Acked belong to one
// goroutine.
type Tail struct {
	// Delay says how long a change of an origin may wait for the peer to get it
	// from elsewhere: see [Tail.Acked]. A change without delay takes those
	// before it along. Nil for none. Set it before Next.
	Delay func(crdt.Origin) time.Duration

	store   *Store
	wake    chan struct{}
	have    crdt.Vector   // what the peer includes once it has what Next returned
	sent    crdt.Vector   // the last Frame.Vector
	next    int64         // the history before it is done with
	pending time.Time     // since when changes wait for their delay, zero for none
	delayed time.Duration // how long they do
	ownThen [2]crdt.Dot   // the store's own last changes when they were looked at
	cut     *cut

	mu      sync.Mutex
	acked   crdt.Vector // what the peer said that it includes and have does not yet hold
	waiting bool        // changes wait for what the peer says
}

// Tail returns what have lacks: the history in this replica's order if it
// reaches back far enough, else the newest state of each key as one cut; and
// then what comes. It fails with [ErrForgotten] when have is not empty and
// lacks a delete that is no longer remembered.
func (s *Store) Tail(ctx context.Context, have crdt.Vector) (*Tail, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := &Tail{store: s, wake: make(chan struct{}, 1), have: have.Clone(), sent: crdt.Vector{}}
	s.hub.mu.Lock()
	if s.hub.closed {
		s.hub.mu.Unlock()
		return nil, ErrClosed
	}
	s.hub.tails[t] = struct{}{}
	s.hub.mu.Unlock()
	if err := t.sync(s.view.Load()); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close lets go of what the tail holds.
func (t *Tail) Close() {
	h := t.store.hub
	h.mu.Lock()
	delete(h.tails, t)
	h.mu.Unlock()
	if t.cut != nil {
		t.cut.release()
		t.cut = nil
	}
}

// Acked tells the tail what the peer includes by now, so that it is not sent.
// A frame from the peer says so as well as its acknowledgement.
func (t *Tail) Acked(have crdt.Vector) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.acked == nil {
		t.acked = crdt.Vector{}
	}
	t.acked.Join(have)
	if t.waiting {
		t.signal()
	}
}

func (t *Tail) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Next returns the next frame, waiting for one. A frame holds at least one
// record or news of the vector, and its records take about [FrameBytes] at
// most. It fails with [ErrClosed] when the store closes, with [ErrForgotten]
// when the peer has become too slow for what is remembered, and as ctx does.
func (t *Tail) Next(ctx context.Context) (Frame, error) {
	for {
		f, delay, err := t.poll()
		if err != nil || f.Vector != nil || f.Cut {
			return f, err
		}
		if delay > 0 && !t.await() {
			continue
		}
		if err := t.wait(ctx, delay); err != nil {
			return Frame{}, err
		}
	}
}

// await notes that changes wait for what the peer says, unless it has said
// something meanwhile.
func (t *Tail) await() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = t.acked == nil
	return t.waiting
}

// poll returns the next frame, an empty one when there is none yet, and how
// long one is delayed then.
func (t *Tail) poll() (Frame, time.Duration, error) {
	t.takeAcked()
	v := t.store.view.Load()
	if t.cut == nil {
		if err := t.sync(v); err != nil {
			return Frame{}, 0, err
		}
	}
	if t.cut == nil {
		f, delay, err := t.window(v)
		switch {
		case err == nil:
			return f, delay, nil
		case !errors.Is(err, errMissing):
			return Frame{}, 0, fmt.Errorf("tail: %w", err)
		}
		// Compacted under the tail's eyes.
		if err := t.beginCut(); err != nil {
			return Frame{}, 0, err
		}
	}
	f, err := t.nextOfCut()
	return f, 0, err
}

func (t *Tail) takeAcked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = false
	if t.acked != nil {
		t.have.Join(t.acked)
		t.acked, t.delayed = nil, 0 // it may have got what waits
	}
}

// wait waits for news, or for as long as changes are delayed.
func (t *Tail) wait(ctx context.Context, delay time.Duration) error {
	var after <-chan time.Time
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		after = timer.C
	}
	select {
	case <-t.wake:
	case <-after:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.store.failure:
		return t.store.failErr
	case <-t.store.stop:
		return ErrClosed
	}
	return nil
}

// sync makes sure that the peer can go on with the history of v, or begins a
// cut.
func (t *Tail) sync(v *view) error {
	switch {
	case t.next > 0 && t.next >= v.floor:
		return nil
	case t.have.Includes(v.past):
		t.sent.Join(v.past)
		t.next = max(t.next, 1)
		return nil
	}
	return t.beginCut()
}

// lacks reports whether the peer may lack what v includes.
func (t *Tail) lacks(v *version) bool { return v.joined || !t.have.Covers(v.dot) }

// includes reports whether the peer has all of a record, which its dot alone
// need not tell.
func (t *Tail) includes(r *crdt.Record) bool {
	return t.have.Covers(r.Dot) && (!r.Joined() || t.have.Includes(r.Seen()))
}

// window returns the next piece of history, without a vector when there is
// none, and how long it is delayed then.
func (t *Tail) window(v *view) (Frame, time.Duration, error) {
	// While changes wait, each that follows wakes the tail. Only the store's own
	// are worth another look before what the peer says: those of others wait with
	// the rest, for what is left of the delay.
	now, own := t.store.cfg.Now(), [2]crdt.Dot{v.claims.own, v.claims.memory}
	if left := t.delayed - now.Sub(t.pending); !t.pending.IsZero() && own == t.ownThen && left > 0 {
		return Frame{}, left, nil
	}
	p := t.scan(v)
	if len(p.versions) > 0 && p.delay > 0 {
		if t.pending.IsZero() {
			t.pending = now
		}
		t.delayed, t.ownThen = p.delay, own
		if left := p.delay - now.Sub(t.pending); left > 0 {
			return Frame{}, left, nil
		}
	}
	t.pending = time.Time{}
	f := Frame{Revision: p.rev}
	records, err := t.store.records(p.versions)
	if err != nil {
		return Frame{}, 0, err
	}
	for _, r := range records {
		if r == nil {
			return Frame{}, 0, errMissing
		}
		if !t.includes(r) {
			f.Records = append(f.Records, r)
		}
	}
	if p.rev == v.rev {
		t.sent = v.claims.vector()
	} else {
		t.sent.Join(p.news)
	}
	t.next = p.rev + 1
	if len(f.Records) > 0 || !t.have.Includes(t.sent) {
		f.Vector = t.sent.Clone()
		t.have.Join(t.sent)
	}
	return f, 0, nil
}

// piece is what the history has next for a peer.
type piece struct {
	versions []*version
	rev      int64         // the piece reaches to it
	news     crdt.Vector   // what it adds to the vector, if it does not reach the end
	delay    time.Duration // how long all of it may wait
}

// scan finds the changes that a peer lacks, up to the bounds of a frame.
func (t *Tail) scan(v *view) piece {
	p := piece{rev: v.rev, news: crdt.Vector{}}
	if t.next <= 1 {
		p.versions = v.orphans()
	}
	size := 0
	for _, e := range v.since(t.next) {
		if !e.replicated {
			p.rev = e.rev
			continue
		}
		own := e.dot.Origin == v.claims.own.Origin || e.dot.Origin == v.claims.memory.Origin
		if !e.joined && t.have.Covers(e.dot) {
			p.rev = e.rev
			if own {
				p.news.Note(e.dot)
			}
			continue
		}
		it, i := v.find(e)
		if i < 0 || it.between(i) {
			p.rev = e.rev
			continue // gone, so the peer has it; or nobody's change
		}
		if size >= FrameBytes || len(p.versions) >= frameRecords {
			break // with all before it that is nothing to the peer
		}
		p.rev = e.rev
		if own {
			p.news.Note(e.dot)
		}
		ver := &it.versions[i]
		delay := time.Duration(0)
		if t.Delay != nil {
			delay = t.Delay(e.dot.Origin)
		}
		if len(p.versions) == 0 || delay < p.delay {
			p.delay = delay
		}
		p.versions = append(p.versions, ver)
		size += int(ver.size)
	}
	if n := len(v.history); n > 0 && p.rev >= v.history[n-1].rev {
		p.rev = v.rev
	}
	if p.rev == v.rev {
		return p // the claims say it all
	}
	first := sort.Search(len(v.marks), func(i int) bool { return v.marks[i].rev >= t.next })
	for _, m := range v.marks[first:] {
		if m.rev > p.rev {
			break
		}
		for _, d := range m.news {
			p.news.Note(d)
		}
	}
	return p
}
