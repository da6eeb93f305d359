package etcd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mootkube/moot/gossip/store"
)

// noWatch is the watch ID of responses that belong to no watch or to all.
const noWatch = -1

// watchService answers the Watch service.
type watchService struct {
	pb.UnsafeWatchServer
	identity
	store            Store
	streams          *streams
	maxWatches       int
	progressInterval time.Duration
}

// watchStream is one open stream and the watches created on it.
type watchStream struct {
	*watchService
	ctx     context.Context // ends with the stream; kept because the goroutines of watches need it
	fail    func(error)     // ends the stream
	stream  pb.Watch_WatchServer
	running sync.WaitGroup

	// mu is held while sending: gRPC takes one sender at a time, and what is
	// sent must agree with the fields below. A client that does not read
	// keeps whoever sends waiting, and with it the stream, but nothing else.
	mu      sync.Mutex
	watches map[int64]*watch
	nextID  int64
	round   progressRound
}

// watch is one watch of a stream.
type watch struct {
	id              int64
	start           int64 // first revision the client wants
	source          *store.Watcher
	prevKV          bool
	noPut, noDelete bool
	notify          bool

	// Guarded by watchStream.mu.
	gone      bool // cancelled or ended: nothing may be sent any more
	active    bool // had an event since the last progress tick
	notifyDue bool // a tick asked for progress that has not come yet
	roundDue  bool // the round waits for this watch
}

// Watch serves one stream until the client leaves.
func (s *watchService) Watch(stream pb.Watch_WatchServer) error {
	return s.streams.serve(stream.Context(), func(ctx context.Context, fail func(error)) error {
		ws := &watchStream{watchService: s, ctx: ctx, fail: fail, stream: stream, watches: make(map[int64]*watch)}
		ws.running.Go(ws.tick)
		err := ws.receive()
		if err == nil {
			// The client has no more requests but may go on listening.
			<-ctx.Done()
			err = context.Cause(ctx)
		}
		fail(err)
		ws.closeAll()
		ws.running.Wait()
		return err
	})
}

// receive handles the client's requests in order.
func (ws *watchStream) receive() error {
	for {
		r, err := ws.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch u := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = ws.create(u.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = ws.cancel(u.CancelRequest.GetWatchId())
		case *pb.WatchRequest_ProgressRequest:
			err = ws.requestProgress()
		}
		if err != nil {
			return err
		}
	}
}

// create opens a watch and answers with its ID before any of its events. What
// is wrong with the request cancels the watch, not the stream.
func (ws *watchStream) create(r *pb.WatchCreateRequest) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	// Read first: whatever comes after this revision is the watch's to show.
	revision := ws.store.Revision()
	key := r.Key
	if len(key) == 0 {
		key = []byte{0}
	}
	if reason := ws.refuseLocked(r, key); reason != "" {
		return ws.stream.Send(&pb.WatchResponse{Header: ws.headerMessage(revision), WatchId: noWatch, Created: true, Canceled: true, CancelReason: reason})
	}
	start := r.StartRevision
	if start == 0 {
		start = revision + 1
	}
	source, err := ws.store.Watch(ws.ctx, store.WatchRequest{Key: key, End: r.RangeEnd, StartRevision: start})
	compacted := errors.Is(err, store.ErrCompacted)
	if err != nil && !compacted {
		return statusError(err)
	}
	id := ws.idLocked(r.WatchId)
	if err := ws.stream.Send(&pb.WatchResponse{Header: ws.headerMessage(revision), WatchId: id, Created: true}); err != nil {
		if source != nil {
			source.Close()
		}
		return err
	}
	if compacted {
		return ws.sendCompactedLocked(id, start)
	}
	w := &watch{id: id, start: start, source: source, prevKV: r.PrevKv, notify: r.ProgressNotify}
	for _, filter := range r.Filters {
		w.noPut = w.noPut || filter == pb.WatchCreateRequest_NOPUT
		w.noDelete = w.noDelete || filter == pb.WatchCreateRequest_NODELETE
	}
	ws.watches[id] = w
	ws.running.Go(func() { ws.forward(w) })
	if ws.round.active {
		// The round's answer is for all watches, so it must wait for this one too.
		return ws.startRoundLocked()
	}
	return nil
}

// refuseLocked returns why the watch cannot be created, in etcd's words where
// etcd has them.
func (ws *watchStream) refuseLocked(r *pb.WatchCreateRequest, key []byte) string {
	end := r.RangeEnd
	switch {
	case r.StartRevision < 0:
		return rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)
	case len(end) > 0 && string(end) != "\x00" && bytes.Compare(key, end) >= 0:
		return "mvcc: watcher range is empty"
	case r.WatchId < 0:
		return "mvcc: watch ID is negative"
	case r.WatchId != 0 && ws.watches[r.WatchId] != nil:
		return "mvcc: duplicate watch ID provided on the WatchStream"
	case len(ws.watches) >= ws.maxWatches:
		return "too many watches on one stream; open another stream"
	}
	return ""
}

// idLocked returns the wanted ID, or the next free one for zero.
func (ws *watchStream) idLocked(wanted int64) int64 {
	if wanted != 0 {
		return wanted
	}
	for ws.watches[ws.nextID] != nil {
		ws.nextID++
	}
	id := ws.nextID
	ws.nextID++
	return id
}

// sendCompactedLocked ends a watch whose start is out of reach. What only memory
// holds has no past before the store was opened, compacted or not, and a client
// that is told of no compaction takes the end for its own doing.
func (ws *watchStream) sendCompactedLocked(id, start int64) error {
	compacted := ws.store.CompactRevision()
	if compacted <= start {
		compacted = ws.store.Revision()
	}
	return ws.stream.Send(&pb.WatchResponse{
		Header:          ws.headerMessage(ws.store.Revision()),
		WatchId:         id,
		Canceled:        true,
		CompactRevision: compacted,
	})
}

// cancel ends a watch at the client's wish. Nothing of it is sent after the answer.
func (ws *watchStream) cancel(id int64) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.watches[id]
	if w == nil {
		return nil
	}
	w.source.Close()
	if err := ws.stream.Send(&pb.WatchResponse{Header: ws.headerMessage(ws.store.Revision()), WatchId: id, Canceled: true}); err != nil {
		return err
	}
	return ws.removeLocked(w)
}

// removeLocked forgets a watch and, if the round waited for it, goes on without it.
func (ws *watchStream) removeLocked(w *watch) error {
	w.gone = true
	delete(ws.watches, w.id)
	if w.roundDue {
		return ws.reportedLocked(w)
	}
	return nil
}

func (ws *watchStream) closeAll() {
	// The stream has ended, so whoever holds the lock does not stay in Send.
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.watches {
		w.gone = true
		w.source.Close()
	}
}

// tick asks for progress of the quiet watches that want to be notified.
func (ws *watchStream) tick() {
	// The jitter keeps streams opened together from being notified together.
	interval := ws.progressInterval + rand.N(ws.progressInterval/10+1)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ws.ctx.Done():
			return
		case <-ticker.C:
			ws.mu.Lock()
			for _, w := range ws.watches {
				if w.notify && !w.active {
					w.notifyDue = true
					w.source.Progress()
				}
				w.active = false
			}
			ws.mu.Unlock()
		}
	}
}
