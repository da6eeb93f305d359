package gossip

import (
	"context"
	"slices"
	"sync"
	"time"
)

// ackQueue holds back the answers to local writes until a peer has them on
// disk. A writer waits for the first live peer only, for so long, and not at
// all when there is none. A peer that let a write wait for too long is not
// waited for again before it has caught up.
type ackQueue struct {
	wait time.Duration
	wake signal

	mu     sync.Mutex
	closed bool
	held   []held // in order of revision and of time
	peers  map[string]*acker
	counts AckCounts
}

type held struct {
	rev      int64
	deadline time.Time
	release  func()
}

// acker is a peer that tails this node.
type acker struct {
	streams int
	acked   int64
	live    bool
	slow    bool // passed over; until it has caught up with owes
	owes    int64
}

func newAckQueue(wait time.Duration) *ackQueue {
	return &ackQueue{wait: wait, wake: newSignal(), peers: make(map[string]*acker)}
}

// hold calls release when revision rev counts as acknowledged.
func (q *ackQueue) hold(rev int64, release func()) {
	q.mu.Lock()
	switch {
	case q.closed || !q.waitableLocked():
		q.counts.Alone++
	case q.bestLocked() >= rev:
		q.counts.Peer++
	default:
		q.held = append(q.held, held{rev: rev, deadline: time.Now().Add(q.wait), release: release})
		if len(q.held) == 1 {
			q.wake.fire()
		}
		release = nil
	}
	q.mu.Unlock()
	if release != nil {
		release()
	}
}

// waitableLocked reports whether some peer is worth waiting for.
func (q *ackQueue) waitableLocked() bool {
	for _, p := range q.peers {
		if p.streams > 0 && p.live && !p.slow {
			return true
		}
	}
	return false
}

// bestLocked is the newest revision that some peer has on disk.
func (q *ackQueue) bestLocked() int64 {
	best := int64(0)
	for _, p := range q.peers {
		best = max(best, p.acked)
	}
	return best
}

// attach notes that a peer tails this node, from now until detach is called.
func (q *ackQueue) attach(name string) (detach func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.peers[name]
	if !ok {
		p = &acker{live: true}
		q.peers[name] = p
	}
	p.streams++
	return func() {
		q.mu.Lock()
		if p.streams--; p.streams == 0 {
			delete(q.peers, name)
		}
		release := q.settleLocked()
		q.mu.Unlock()
		release()
	}
}

// judge notes which peers are live.
func (q *ackQueue) judge(live map[string]bool) {
	q.mu.Lock()
	for name, p := range q.peers {
		p.live = live[name]
	}
	release := q.settleLocked()
	q.mu.Unlock()
	release()
}

// ack notes that a peer has everything up to rev on disk.
func (q *ackQueue) ack(name string, rev int64) {
	q.mu.Lock()
	p, ok := q.peers[name]
	if !ok || rev <= p.acked {
		q.mu.Unlock()
		return
	}
	p.acked = rev
	if p.slow && rev >= p.owes {
		p.slow = false
	}
	n := 0
	for n < len(q.held) && q.held[n].rev <= rev {
		n++
	}
	q.counts.Peer += uint64(n)
	release := q.takeLocked(n)
	q.mu.Unlock()
	release()
}

// settleLocked gives up on all writers when no peer is worth waiting for.
func (q *ackQueue) settleLocked() (release func()) {
	if len(q.held) == 0 || q.waitableLocked() {
		return func() {}
	}
	q.counts.Alone += uint64(len(q.held))
	return q.takeLocked(len(q.held))
}

// takeLocked takes the first n writers out of the queue. The caller calls
// release once it has let go of the lock.
func (q *ackQueue) takeLocked(n int) (release func()) {
	if n == 0 {
		return func() {}
	}
	taken := slices.Clone(q.held[:n]) // so that the queue does not hold on to them
	q.held = slices.Delete(q.held, 0, n)
	return func() {
		for _, h := range taken {
			h.release()
		}
	}
}

// expire gives up on the writers that have waited for long enough, and returns
// when the next will have.
func (q *ackQueue) expire(now time.Time) time.Duration {
	q.mu.Lock()
	n := 0
	for n < len(q.held) && !now.Before(q.held[n].deadline) {
		n++
	}
	if n > 0 {
		q.counts.TimedOut += uint64(n)
		for _, p := range q.peers {
			if p.live && !p.slow && p.acked < q.held[n-1].rev {
				p.slow, p.owes = true, q.held[n-1].rev
				q.counts.PassedOver++
			}
		}
	}
	release := q.takeLocked(n)
	rest := q.settleLocked()
	next := time.Duration(-1)
	if len(q.held) > 0 {
		next = q.held[0].deadline.Sub(now)
	}
	q.mu.Unlock()
	release()
	rest()
	return next
}

// run gives up on writers in time.
func (q *ackQueue) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			q.close()
			return nil
		case <-q.wake:
		case <-timer.C:
		}
		if next := q.expire(time.Now()); next >= 0 {
			timer.Reset(next)
		}
	}
}

// close releases all writers, now and from now on.
func (q *ackQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.counts.Alone += uint64(len(q.held))
	release := q.takeLocked(len(q.held))
	q.mu.Unlock()
	release()
}

// acked returns the newest revision that a peer has on disk.
func (q *ackQueue) acked(name string) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p, ok := q.peers[name]; ok {
		return p.acked
	}
	return 0
}

func (q *ackQueue) count() AckCounts {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.counts
}
