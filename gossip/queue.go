package gossip

import (
	"context"
	"net"
	"slices"
	"sync"
)

// partQueue holds what has arrived and is not applied yet, bounded in bytes.
// Beyond the bound put waits, so that the peer does too.
type partQueue struct {
	limit int

	mu     sync.Mutex
	parts  []*records
	sizes  []int
	bytes  int
	closed bool
	filled signal
	room   signal
}

func newPartQueue(limit int) *partQueue {
	return &partQueue{limit: limit, filled: newSignal(), room: newSignal()}
}

func (q *partQueue) put(ctx context.Context, p *records, size int) error {
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return net.ErrClosed
		}
		if q.bytes == 0 || q.bytes+size <= q.limit {
			q.parts = append(q.parts, p)
			q.sizes = append(q.sizes, size)
			q.bytes += size
			q.mu.Unlock()
			q.filled.fire()
			return nil
		}
		q.mu.Unlock()
		select {
		case <-q.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take waits for something and returns what there is, up to limit bytes, but
// nothing after a part with announcements: what those are is still to come.
func (q *partQueue) take(ctx context.Context, limit int) ([]*records, error) {
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil, net.ErrClosed
		}
		n, bytes := 0, 0
		for n < len(q.parts) && (n == 0 || bytes+q.sizes[n] <= limit) {
			bytes += q.sizes[n]
			n++
			if len(q.parts[n-1].Large) > 0 {
				break
			}
		}
		if n > 0 {
			taken := slices.Clone(q.parts[:n]) // so that the queue does not hold on to them
			q.parts, q.sizes, q.bytes = slices.Delete(q.parts, 0, n), slices.Delete(q.sizes, 0, n), q.bytes-bytes
			q.mu.Unlock()
			q.room.fire()
			return taken, nil
		}
		q.mu.Unlock()
		select {
		case <-q.filled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (q *partQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.filled.fire()
	q.room.fire()
}
