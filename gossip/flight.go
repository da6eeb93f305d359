package gossip

import (
	"context"
	"sync"
)

// flight bounds what has been sent on a stream and is not on the peer's disk.
type flight struct {
	room signal

	mu     sync.Mutex
	sizes  []int
	bytes  int
	landed uint64
}

// start waits until another size bytes may be sent.
func (f *flight) start(ctx context.Context, size int) error {
	for {
		f.mu.Lock()
		if f.bytes == 0 || f.bytes+size <= windowBytes {
			f.addLocked(size)
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-f.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow counts what is sent because the peer waits for it.
func (f *flight) follow(size int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addLocked(size)
}

func (f *flight) addLocked(size int) {
	f.sizes = append(f.sizes, size)
	f.bytes += size
}

// land notes that so many parts have landed since the stream began.
func (f *flight) land(parts uint64) {
	f.mu.Lock()
	for f.landed < parts && len(f.sizes) > 0 {
		f.bytes -= f.sizes[0]
		f.sizes = f.sizes[1:]
		f.landed++
	}
	f.mu.Unlock()
	f.room.fire()
}
