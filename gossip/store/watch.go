package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/mootkube/moot/gossip/crdt"
)

// change is one committed change on its way to the watchers.
type change struct {
	rec  *crdt.Record
	prev *version // what it replaced, nil for a create

	once   sync.Once
	prevKV *KeyValue
}

// event returns the change as watchers see it. What it replaced is read once,
// by the first watcher that wants it.
func (c *change) event(s *Store) Event {
	c.once.Do(func() {
		if c.prev != nil {
			c.prevKV = s.prevKV(c.rec.Key, c.prev)
		}
	})
	return newEvent(c.rec, c.prevKV)
}

func newEvent(r *crdt.Record, prev *KeyValue) Event {
	e := Event{Prev: prev, KV: KeyValue{Key: r.Key, ModRevision: int64(r.Mod)}}
	if r.Deleted {
		e.Type = EventDelete
		return e
	}
	e.KV.Value = r.Value
	e.KV.CreateRevision = int64(r.Create)
	e.KV.Version = r.Version
	e.KV.Lease = r.Lease
	return e
}

// prevKV returns the key as of v, nil when that has been compacted away.
func (s *Store) prevKV(key []byte, v *version) *KeyValue {
	kv, err := s.keyValue(key, v, false)
	if err != nil {
		if !errors.Is(err, errMissing) && !errors.Is(err, ErrClosed) {
			s.cfg.Log.Warn("previous value is unknown", "err", err)
		}
		return nil
	}
	return &kv
}

// hub hands committed changes to the watchers that keep up.
type hub struct {
	mu       sync.Mutex
	rev      int64 // everything up to it has been handed out
	watchers map[*Watcher]struct{}
	tails    map[*Tail]struct{}
	closed   bool
}

func newHub() *hub {
	return &hub{watchers: make(map[*Watcher]struct{}), tails: make(map[*Tail]struct{})}
}

// tailed reports whether a peer tails the store.
func (h *hub) tailed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.tails) > 0
}

// end ends the watchers there are.
func (h *hub) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.finish(why)
	}
}

// publish hands out the changes of one batch, in order. It never waits: a
// watcher whose queue is full is left to read history.
func (h *hub) publish(changes []*change, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rev = rev
	for w := range h.watchers {
		if w.live {
			w.offerLocked(changes)
		}
	}
	for t := range h.tails {
		t.signal()
	}
}

// close ends all watchers with [ErrClosed].
func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	all := make([]*Watcher, 0, len(h.watchers))
	for w := range h.watchers {
		all = append(all, w)
	}
	h.mu.Unlock()
	for _, w := range all {
		w.finish(ErrClosed)
		<-w.done
	}
}

// Watcher delivers the changes of a range of keys in order of revision, none
// left out and none twice. A reader that is slow costs a bounded queue; beyond
// it the changes are read back from history, and should they be compacted
// before that, the watcher ends with [ErrCompacted].
type Watcher struct {
	store    *Store
	key, end []byte
	events   chan Batch
	wake     chan struct{} // the queue or the wish for progress has changed
	done     chan struct{} // closed when its goroutine is gone
	quit     chan struct{} // closed to end it
	quitOnce sync.Once
	err      error // why it ended, set before quit is closed

	next int64 // first revision not delivered; its goroutine's own
	sent int64 // last Batch.Revision; its goroutine's own

	// Under hub.mu:
	live     bool // fed by the publisher, not reading history
	from     int64
	queue    []*change
	bytes    int
	progress bool
}

// Watch delivers the changes of a range of keys from req.StartRevision on, or
// those after now for 0. A revision in the future is waited for. It fails with
// [ErrCompacted] when the start is behind the history. The watcher runs until
// it is closed, ctx ends or the store closes.
func (s *Store) Watch(ctx context.Context, req WatchRequest) (*Watcher, error) {
	if len(req.Key) == 0 {
		return nil, errors.New("watch: no key")
	}
	v := s.view.Load()
	start := req.StartRevision
	if start <= 0 {
		start = v.rev + 1
	}
	if err := v.checkWatch(req.Key, req.End, start); err != nil {
		return nil, err
	}
	w := &Watcher{
		store:  s,
		key:    req.Key,
		end:    req.End,
		events: make(chan Batch),
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		quit:   make(chan struct{}),
		next:   start,
	}
	s.hub.mu.Lock()
	if s.hub.closed {
		s.hub.mu.Unlock()
		return nil, ErrClosed
	}
	s.hub.watchers[w] = struct{}{}
	s.hub.mu.Unlock()
	go w.run(ctx)
	return w, nil
}

// Events returns the channel that delivers. It is closed when the watcher has
// ended; [Watcher.Err] says why.
func (w *Watcher) Events() <-chan Batch { return w.events }

// Progress asks for a batch without events that says how far the watcher has
// come. It is delivered in order: after all changes up to its revision.
// Several requests may share one answer.
func (w *Watcher) Progress() {
	h := w.store.hub
	h.mu.Lock()
	w.progress = true
	h.mu.Unlock()
	w.signal()
}

// Close ends the watcher and waits until its goroutine is gone.
func (w *Watcher) Close() {
	w.finish(nil)
	<-w.done
}

// Err returns why the watcher ended, once Events is closed: nil after Close.
func (w *Watcher) Err() error {
	select {
	case <-w.quit:
		return w.err
	default:
		return nil
	}
}

func (w *Watcher) finish(err error) {
	w.quitOnce.Do(func() {
		w.err = err
		close(w.quit)
	})
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// offerLocked queues the changes that are in the watcher's range.
func (w *Watcher) offerLocked(changes []*change) {
	cfg := &w.store.cfg
	queued := false
	for _, c := range changes {
		if int64(c.rec.Mod) < w.from || !inRange(c.rec.Key, w.key, w.end) {
			continue
		}
		size := len(c.rec.Key) + len(c.rec.Value)
		if len(w.queue) >= cfg.WatchEvents || len(w.queue) > 0 && w.bytes+size > cfg.WatchBytes {
			w.live = false // it reads on from history after the queue
			break
		}
		w.queue = append(w.queue, c)
		w.bytes += size
		queued = true
	}
	if queued {
		w.signal()
	}
}

func (w *Watcher) run(ctx context.Context) {
	stopCtx := context.AfterFunc(ctx, func() { w.finish(ctx.Err()) })
	defer stopCtx()
	defer close(w.done)
	defer close(w.events)
	defer func() {
		h := w.store.hub
		h.mu.Lock()
		delete(h.watchers, w)
		h.mu.Unlock()
	}()
	for {
		select {
		case <-w.quit:
			return
		default:
		}
		if err := w.step(); err != nil {
			w.finish(err)
			return
		}
	}
}

// step delivers what is queued, or what history has next, or waits.
func (w *Watcher) step() error {
	h := w.store.hub
	h.mu.Lock()
	queue, live, rev := w.queue, w.live, h.rev
	w.queue, w.bytes = nil, 0
	progress := live && len(queue) == 0 && w.progress
	if progress {
		w.progress = false
	}
	h.mu.Unlock()
	switch {
	case len(queue) > 0:
		if !live {
			rev = int64(queue[len(queue)-1].rec.Mod)
		}
		events := make([]Event, len(queue))
		for i, c := range queue {
			events[i] = c.event(w.store)
		}
		w.send(Batch{Events: events, Revision: rev})
		w.next = max(w.next, rev+1)
	case !live:
		return w.catchUp()
	case progress:
		w.send(Batch{Revision: rev})
	default:
		select {
		case <-w.wake:
		case <-w.quit:
		}
	}
	return nil
}

func (w *Watcher) send(b Batch) {
	b.Revision = max(b.Revision, w.sent)
	select {
	case w.events <- b:
		w.sent = b.Revision
	case <-w.quit:
	}
}

// catchUp delivers the next part of history, or goes live at its end.
func (w *Watcher) catchUp() error {
	v := w.store.view.Load()
	if w.next <= v.rev {
		if err := v.checkWatch(w.key, w.end, w.next); err != nil {
			return err
		}
		events, upTo, err := w.store.past(v, w, w.next)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			w.send(Batch{Events: events, Revision: upTo})
		}
		w.next = upTo + 1
		if upTo < v.rev {
			return nil
		}
	}
	h := w.store.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rev <= max(v.rev, w.next-1) {
		w.live, w.from = true, w.next
	}
	return nil
}

// pastScan bounds the history looked at in one go.
const pastScan = 20_000

// past reads history from a revision on, up to the bounds of one batch. All
// changes of the range up to upTo are in events.
func (s *Store) past(v *view, w *Watcher, from int64) (events []Event, upTo int64, err error) {
	size := 0
	for i, e := range v.since(from) {
		if len(events) >= s.cfg.WatchEvents || size >= s.cfg.WatchBytes || i >= pastScan {
			return events, upTo, nil
		}
		upTo = e.rev
		if !inRange(e.key, w.key, w.end) {
			continue
		}
		ev, ok, err := s.pastEvent(v, e)
		if err == nil && !ok {
			continue
		}
		if errors.Is(err, errMissing) {
			return nil, 0, ErrCompacted
		}
		if err != nil {
			return nil, 0, fmt.Errorf("read history: %w", err)
		}
		size += len(ev.KV.Key) + len(ev.KV.Value)
		events = append(events, ev)
	}
	return events, v.rev, nil
}

// pastEvent returns the event of an entry of the history, false for one that
// watchers do not see.
func (s *Store) pastEvent(v *view, e entry) (Event, bool, error) {
	it, i := v.find(e)
	if i < 0 {
		return Event{}, false, errMissing
	}
	if it.versions[i].silent {
		return Event{}, false, nil
	}
	r, err := s.record(&it.versions[i])
	if err != nil {
		return Event{}, false, err
	}
	var prev *KeyValue
	if i > 0 && !it.versions[i-1].deleted {
		prev = s.prevKV(e.key, &it.versions[i-1])
	}
	return newEvent(r, prev), true, nil
}
