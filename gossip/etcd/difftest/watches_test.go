package difftest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func sortKVs(kvs []kv) {
	slices.SortFunc(kvs, func(a, b kv) int { return cmp.Compare(a.Key, b.Key) })
}

func sortInts(ids []int64) { slices.Sort(ids) }

// watchLog is all that one side said about one watch.
type watchLog struct {
	events       []*mvccpb.Event
	created      bool
	cancelled    bool
	compactRev   int64
	cancelReason string
	progress     int64 // newest progress that holds for this watch
	lastRevision int64 // of an event
}

// clientStream is one side's watch stream with what came out of it.
type clientStream struct {
	side   *side
	stream pb.Watch_WatchClient
	done   chan struct{}

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each response
	logs     map[int64]*watchLog
	progress int64 // newest progress for all watches
	broken   error // a promise of the protocol that was not kept, or the stream's end
}

// streamPair is one stream with its watches, on both sides.
type streamPair struct {
	h          *history
	ours, etcd *clientStream
	watches    []watchPair
	cancel     context.CancelFunc
	nextID     int64
}

type watchPair struct {
	id   int64
	what string
}

func (h *history) openStream() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(h.ctx)
	p := &streamPair{h: h, cancel: cancel, nextID: 1}
	p.ours, p.etcd = h.listen(ctx, h.ours), h.listen(ctx, h.etcd)
	h.streams = append(h.streams, p)
}

func (h *history) listen(ctx context.Context, s *side) *clientStream {
	h.t.Helper()
	stream, err := s.watch.Watch(ctx)
	if err != nil {
		h.fail("open a watch stream on %s: %v", s.name, err)
	}
	c := &clientStream{side: s, stream: stream, done: make(chan struct{}), changed: make(chan struct{}), logs: make(map[int64]*watchLog)}
	go func() {
		defer close(c.done)
		for {
			r, err := stream.Recv()
			c.take(r, err)
			if err != nil {
				return
			}
		}
	}()
	return c
}

func (p *streamPair) close() {
	p.cancel()
	<-p.ours.done
	<-p.etcd.done
}

// take files one response, and holds it to what etcd promises.
func (c *clientStream) take(r *pb.WatchResponse, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
	if err != nil {
		if c.broken == nil {
			c.broken = err
		}
		return
	}
	if r.WatchId == -1 && !r.Created {
		c.progress = max(c.progress, r.Header.Revision)
		for _, l := range c.logs { // a watch created later may begin further back
			l.progress = max(l.progress, r.Header.Revision)
		}
		return
	}
	l := c.logs[r.WatchId]
	if l == nil {
		l = &watchLog{}
		c.logs[r.WatchId] = l
	}
	if broken := l.take(r); broken != "" && c.broken == nil {
		c.broken = fmt.Errorf("watch %d: %s", r.WatchId, broken)
	}
}

func (l *watchLog) take(r *pb.WatchResponse) string {
	switch {
	case r.Created:
		l.created = true
	case r.Canceled && l.cancelled:
		return "" // etcd answers the cancelling of a compacted watch too
	case r.Canceled:
		l.cancelled, l.compactRev, l.cancelReason = true, r.CompactRevision, r.CancelReason
	case len(r.Events) == 0:
		l.progress = max(l.progress, r.Header.Revision)
	}
	if !l.created {
		return "a response came before the created one"
	}
	for _, e := range r.Events {
		if e.Kv.ModRevision <= l.progress {
			return fmt.Sprintf("event at %d after progress %d", e.Kv.ModRevision, l.progress)
		}
		if e.Kv.ModRevision < l.lastRevision {
			return fmt.Sprintf("event at %d after one at %d", e.Kv.ModRevision, l.lastRevision)
		}
		l.lastRevision = e.Kv.ModRevision
		if r.Header.Revision < e.Kv.ModRevision {
			return fmt.Sprintf("header revision %d is behind the event's %d", r.Header.Revision, e.Kv.ModRevision)
		}
	}
	l.events = append(l.events, r.Events...)
	return ""
}

// await waits until ok holds, which is called with the lock held.
func (c *clientStream) await(h *history, what string, retry func(), ok func() bool) {
	h.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for {
		c.mu.Lock()
		done, changed, broken := ok(), c.changed, c.broken
		c.mu.Unlock()
		if broken != nil {
			h.fail("watch stream of %s: %v", c.side.name, broken)
		}
		if done {
			return
		}
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-changed:
		case <-again.C:
			if retry != nil {
				retry()
			}
		case <-deadline.C:
			h.fail("%s did not %s", c.side.name, what)
		}
		again.Stop()
	}
}

func (h *history) createWatch() {
	p := h.streams[h.rng.IntN(len(h.streams))]
	if len(p.watches) > 12 {
		return
	}
	key, end := h.span()
	request := pb.WatchCreateRequest{Key: key, RangeEnd: end, WatchId: p.nextID, PrevKv: h.rng.IntN(2) == 0, Fragment: h.rng.IntN(2) == 0}
	p.nextID++
	if h.rng.IntN(6) == 0 {
		request.Filters = append(request.Filters, pb.WatchCreateRequest_FilterType(h.rng.IntN(2)))
	}
	start, compacted := pair{}, false
	switch h.rng.IntN(4) {
	case 0:
		start = pair{ours: h.revs.ours[len(h.revs.ours)-1] + 1, etcd: h.revs.etcd[len(h.revs.etcd)-1] + 1}
	case 1:
		// Compacted ones included, but for the edge itself: see DESIGN.md.
		if i := h.rng.IntN(len(h.revs.ours)); i != h.compacted {
			start, compacted = h.from(i), i < h.compacted
		}
	}
	what := fmt.Sprintf("watch %d of %q..%q from %v, prev %v, filters %v", request.WatchId, key, end, start, request.PrevKv, request.Filters)
	h.say("%s", what)
	refused := len(end) > 0 && string(end) != "\x00" && string(key) >= string(end)
	for _, c := range []*clientStream{p.ours, p.etcd} {
		r := pb.WatchCreateRequest{
			Key: key, RangeEnd: end, WatchId: request.WatchId, PrevKv: request.PrevKv, Fragment: request.Fragment,
			Filters: request.Filters, StartRevision: start.of(h, c.side),
		}
		c.send(h, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &r}})
		id := r.WatchId
		if refused {
			id = -1
		}
		c.await(h, "answer "+what, nil, func() bool { return c.logs[id] != nil && c.logs[id].created })
	}
	if refused {
		a, b := p.ours.logs[-1], p.etcd.logs[-1]
		if a.cancelled != b.cancelled || a.cancelReason != b.cancelReason {
			h.fail("refused here with %q, in etcd with %q", a.cancelReason, b.cancelReason)
		}
		delete(p.ours.logs, -1)
		delete(p.etcd.logs, -1)
		return
	}
	w := watchPair{id: request.WatchId, what: what}
	if compacted {
		for _, c := range []*clientStream{p.ours, p.etcd} {
			c.await(h, "cancel "+what, nil, func() bool { return c.logs[w.id].cancelled })
			c.cancel(h, w.id) // until then, etcd reports no progress
		}
		p.compare(w)
		return
	}
	p.watches = append(p.watches, w)
}

func (c *clientStream) cancel(h *history, id int64) {
	h.t.Helper()
	c.send(h, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (c *clientStream) send(h *history, r *pb.WatchRequest) {
	h.t.Helper()
	if err := c.stream.Send(r); err != nil {
		h.fail("send to the watch stream of %s: %v", c.side.name, err)
	}
}

func (h *history) cancelWatch() {
	p := h.streams[h.rng.IntN(len(h.streams))]
	if len(p.watches) == 0 {
		return
	}
	h.syncWatches()
	if len(p.watches) == 0 {
		return
	}
	i := h.rng.IntN(len(p.watches))
	w := p.watches[i]
	h.say("cancel watch %d", w.id)
	for _, c := range []*clientStream{p.ours, p.etcd} {
		c.cancel(h, w.id)
		c.await(h, "cancel "+w.what, nil, func() bool { return c.logs[w.id].cancelled })
	}
	p.compare(w)
	p.watches = slices.Delete(p.watches, i, i+1)
}

func (c *clientStream) askProgress(h *history) {
	h.t.Helper()
	c.send(h, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// requestProgress asks now and compares later: the answer may come at any time.
func (h *history) requestProgress() {
	p := h.streams[h.rng.IntN(len(h.streams))]
	h.say("request progress")
	p.ours.askProgress(h)
	p.etcd.askProgress(h)
}

// syncWatches waits until every watch has shown everything, by asking for
// progress, and then compares what was shown.
func (h *history) syncWatches() {
	h.t.Helper()
	// etcd answers no progress for a watch from the revision to come.
	h.both(func(s *side) outcome {
		r, err := s.kv.Put(h.ctx, &pb.PutRequest{Key: []byte("/sync")})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return normalPut(m, r) }
	})
	ours, etcd := h.revs.last()
	for _, p := range h.streams {
		if len(p.watches) > 0 {
			p.ours.awaitProgress(h, ours)
			p.etcd.awaitProgress(h, etcd)
		}
		for _, w := range p.watches {
			p.compare(w)
		}
	}
}

func (c *clientStream) awaitProgress(h *history, revision int64) {
	h.t.Helper()
	c.askProgress(h)
	c.await(h, fmt.Sprintf("report progress up to %d", revision), func() { c.askProgress(h) }, func() bool { return c.progress >= revision })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.progress > revision {
		h.fail("%s reports progress up to %d, the newest revision is %d", c.side.name, c.progress, revision)
	}
}

type event struct {
	Type string
	KV   kv
	Prev *kv
}

// compare requires both sides to have shown the same of one watch.
func (p *streamPair) compare(w watchPair) {
	h := p.h
	h.t.Helper()
	p.ours.mu.Lock()
	defer p.ours.mu.Unlock()
	p.etcd.mu.Lock()
	defer p.etcd.mu.Unlock()
	ours, etcd := p.ours.logs[w.id], p.etcd.logs[w.id]
	a, b := ours.normal(h.revs.toEtcd), etcd.normal(func(r int64) int64 { return r })
	forgiveCompactedPrev(h.revs.etcd[h.compacted], a, b)
	if diff := gocmp.Diff(b, a); diff != "" {
		h.fail("%s showed other events (-etcd +ours):\n%s", w.what, diff)
	}
	if ours.cancelled != etcd.cancelled || h.revs.toEtcd(ours.compactRev) != etcd.compactRev || ours.cancelReason != etcd.cancelReason {
		h.fail("%s ended here as %v %d %q, in etcd as %v %d %q", w.what,
			ours.cancelled, ours.compactRev, ours.cancelReason, etcd.cancelled, etcd.compactRev, etcd.cancelReason)
	}
	// Compared once, an event need not be again.
	ours.events, etcd.events = nil, nil
}

func (l *watchLog) normal(m mapper) []event {
	var out []event
	for _, e := range l.events {
		n := event{Type: e.Type.String(), KV: normalKV(m, e.Kv)}
		if e.PrevKv != nil {
			prev := normalKV(m, e.PrevKv)
			n.Prev = &prev
		}
		out = append(out, n)
	}
	return out
}

// forgiveCompactedPrev lets either side leave out what a key was before a
// change that is not newer than the newest compaction.
func forgiveCompactedPrev(compacted int64, a, b []event) {
	for i := range min(len(a), len(b)) {
		if a[i].KV.Mod <= compacted && (a[i].Prev == nil || b[i].Prev == nil) {
			a[i].Prev, b[i].Prev = nil, nil
		}
	}
}
