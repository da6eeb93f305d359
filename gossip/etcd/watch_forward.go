package etcd

import (
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mootkube/moot/gossip/store"
)

// maxResponseBytes is about how long a watch response may get before the rest
// of a batch goes into another one.
const maxResponseBytes = 1 << 20

// forward sends what the store delivers for w until either side ends it.
func (ws *watchStream) forward(w *watch) {
	for batch := range w.source.Events() {
		var err error
		if len(batch.Events) == 0 {
			err = ws.progressed(w, batch.Revision)
		} else {
			err = ws.deliver(w, batch.Events)
		}
		if err != nil {
			ws.fail(err)
			return
		}
	}
	if err := ws.ended(w); err != nil {
		ws.fail(err)
	}
}

// deliver sends the events the client asked for, in as many responses as their
// size needs. The header's revision is that of the response's last event:
// everything up to it has then been shown.
func (ws *watchStream) deliver(w *watch, events []store.Event) error {
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size < maxResponseBytes) {
			size += eventSize(&events[n], w.prevKV)
			n++
		}
		last := events[n-1].KV.ModRevision
		if wanted := w.wanted(events[:n]); len(wanted) > 0 {
			response := &eventsAnswer{header: header{ws.identity, last}, watchID: w.id, prevKV: w.prevKV, events: wanted}
			ws.mu.Lock()
			if w.gone {
				ws.mu.Unlock()
				return nil
			}
			w.active = true
			err := ws.stream.SendMsg(response)
			ws.mu.Unlock()
			if err != nil {
				return err
			}
		}
		events = events[n:]
	}
	return nil
}

func eventSize(e *store.Event, prevKV bool) int {
	size := len(e.KV.Key) + len(e.KV.Value)
	if prevKV && e.Prev != nil {
		size += len(e.Prev.Key) + len(e.Prev.Value)
	}
	return size
}

// wanted leaves out, in place, what the client did not ask for. A batch is the
// receiver's to change.
func (w *watch) wanted(events []store.Event) []store.Event {
	if !w.noPut && !w.noDelete && events[0].KV.ModRevision >= w.start {
		return events
	}
	return slices.DeleteFunc(events, func(e store.Event) bool {
		return e.KV.ModRevision < w.start ||
			e.Type == store.EventPut && w.noPut ||
			e.Type == store.EventDelete && w.noDelete
	})
}

// ended answers a watch that the store ended. If the client did, nothing is
// left to say.
func (ws *watchStream) ended(w *watch) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.gone || ws.ctx.Err() != nil {
		return nil
	}
	err := w.source.Err()
	switch {
	case errors.Is(err, store.ErrCompacted):
		if err := ws.sendCompactedLocked(w.id, w.start); err != nil {
			return err
		}
	case err == nil, errors.Is(err, store.ErrClosed):
		return statusError(store.ErrClosed)
	default:
		response := &pb.WatchResponse{Header: ws.headerMessage(ws.store.Revision()), WatchId: w.id, Canceled: true, CancelReason: err.Error()}
		if err := ws.stream.Send(response); err != nil {
			return err
		}
	}
	return ws.removeLocked(w)
}
