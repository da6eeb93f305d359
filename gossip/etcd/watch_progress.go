package etcd

import (
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// progressRound answers one progress request of the client, which asks up to
// which revision all watches of the stream have seen everything. Every watch
// is asked for a progress mark that comes in order behind its events; the
// answer is the least of the marks, sent once all have come, and so never
// ahead of an event.
type progressRound struct {
	active   bool
	again    bool  // asked once more meanwhile: another round follows
	wanted   int64 // the store's revision when the round began; older marks are of an earlier question
	waiting  int   // watches whose mark has not come
	revision int64 // least mark so far
}

func (ws *watchStream) requestProgress() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.round.active {
		ws.round.again = true
		return nil
	}
	return ws.startRoundLocked()
}

// startRoundLocked begins a round, or begins the present one anew. As in etcd
// there is no answer while a watch waits for a revision yet to come, since
// the answer would move it back.
func (ws *watchStream) startRoundLocked() error {
	ws.round = progressRound{}
	wanted := ws.store.Revision()
	for _, w := range ws.watches {
		w.roundDue = false
	}
	if len(ws.watches) == 0 {
		return nil
	}
	for _, w := range ws.watches {
		if w.start-1 > wanted {
			return nil
		}
	}
	ws.round = progressRound{active: true, wanted: wanted, waiting: len(ws.watches), revision: math.MaxInt64}
	for _, w := range ws.watches {
		w.roundDue = true
		w.source.Progress()
	}
	return nil
}

// progressed takes a progress mark of w: all its events up to revision have
// been sent.
func (ws *watchStream) progressed(w *watch, revision int64) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.gone {
		return nil
	}
	if w.notifyDue && revision >= w.start-1 {
		w.notifyDue = false
		if err := ws.stream.Send(&pb.WatchResponse{Header: ws.headerMessage(revision), WatchId: w.id}); err != nil {
			return err
		}
	}
	if !w.roundDue {
		return nil
	}
	if revision < ws.round.wanted {
		// A mark asked for earlier, or the store shows a revision to readers
		// a moment before it has handed it to its watchers.
		w.source.Progress()
		return nil
	}
	ws.round.revision = min(ws.round.revision, revision)
	return ws.reportedLocked(w)
}

// reportedLocked notes that the round need not wait for w any more, and
// answers the client after the last one.
func (ws *watchStream) reportedLocked(w *watch) error {
	w.roundDue = false
	ws.round.waiting--
	if ws.round.waiting > 0 {
		return nil
	}
	finished := ws.round
	ws.round = progressRound{}
	if finished.revision != math.MaxInt64 {
		if err := ws.stream.Send(&pb.WatchResponse{Header: ws.headerMessage(finished.revision), WatchId: noWatch}); err != nil {
			return err
		}
	}
	if finished.again {
		return ws.startRoundLocked()
	}
	return nil
}
