package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/crdt"
)

// Store is a multi-version key-value store. Its methods may be called from
// many goroutines. Writes are served while [Store.Run] runs; reads and watches
// from [Open] to [Store.Close].
type Store struct {
	cfg   Config
	db    *pebble.DB
	fs    vfs.FS // the log is on
	cache *pebble.Cache
	lock  *pebble.Lock
	space *space
	mark  *endMark
	base  crdt.Origin // the incarnation in the file ORIGIN

	options *pebble.Options
	opened  time.Time // by the local clock
	reached time.Time // the newest of the changes that were there then

	view   atomic.Pointer[view] // what is visible
	recent *recent
	pins   pins
	hub    *hub
	lessor *lessor
	holds  holds
	stable atomic.Pointer[crdt.Vector] // what all members include

	queue     chan *request
	committer *committer    // owned by Run once it runs
	idle      chan struct{} // holds a token while no batch is on its way to disk

	gate    sync.RWMutex // held for reading while the log is read
	closing bool         // under gate: Close has been called
	closed  bool         // under gate: the log is closed

	failure  chan struct{} // closed when the log can take no more writes
	failOnce sync.Once
	failErr  error // set before failure is closed

	nudge   chan struct{} // compaction may have got something to do
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed when Run has returned
	running atomic.Bool   // Run has been called
}

// Run serves writes until ctx ends, the store is closed or the log fails. It
// owns the committer, the publisher and the lease expiry, and may be called
// once. It returns nil when it was asked to end. When the log failed it returns
// why; the process should end then, since the failed write may be stuck for
// good with its goroutine.
func (s *Store) Run(ctx context.Context) error {
	if err := s.start(); err != nil {
		return err
	}
	defer close(s.stopped)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer cancel()
		select {
		case <-ctx.Done():
			return nil
		case <-s.stop:
			return nil
		case <-s.failure:
			return fmt.Errorf("run store: %w", s.failErr)
		}
	})
	batches := make(chan *batch, 1)
	group.Go(func() error {
		defer close(batches)
		return s.committer.run(ctx, batches)
	})
	group.Go(func() error { return s.publish(batches) })
	group.Go(func() error { return s.lessor.run(ctx, s.expire) })
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = group.Wait()
	}()
	select {
	case <-ended:
		return err
	case <-s.failure:
	}
	select {
	case <-ended:
	case <-time.After(failGrace):
	}
	return fmt.Errorf("run store: %w", s.failErr)
}

// failGrace is how long Run waits for its goroutines after the log failed.
const failGrace = time.Second

func (s *Store) start() error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closing {
		return ErrClosed
	}
	if s.running.Swap(true) {
		return errors.New("run store: already run")
	}
	return nil
}

// Close ends Run, waits for it and closes the files. Reads under way finish;
// later calls get [ErrClosed].
func (s *Store) Close() error {
	s.gate.Lock()
	if !s.closing {
		s.closing = true
		close(s.stop)
	}
	s.gate.Unlock()
	if s.running.Load() {
		<-s.stopped
	}
	s.hub.close()
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	defer s.cache.Unref()
	if s.failed() {
		// The log may be stuck in a failed write; the next start recovers it.
		return errors.Join(s.mark.file.Close(), s.lock.Close())
	}
	err := s.unlessFailed(func() error {
		err := s.committer.release()
		if err == nil && s.space.spare() {
			err = s.db.Flush()
		}
		return errors.Join(err, s.db.Close())
	})
	if err = errors.Join(err, s.mark.file.Close(), s.lock.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// Revision returns the newest visible revision.
func (s *Store) Revision() int64 { return s.view.Load().rev }

// CompactRevision returns the revision before which the past is refused.
func (s *Store) CompactRevision() int64 { return s.view.Load().floor }

// Size returns the bytes the store takes on disk.
func (s *Store) Size() int64 {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed || s.failed() {
		return 0
	}
	return int64(s.db.Metrics().DiskSpaceUsage())
}

func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.failErr = err
		close(s.failure)
	})
}

// unlessFailed runs fn, but does not wait for it once the log has failed.
func (s *Store) unlessFailed(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-s.failure:
		return s.failErr
	}
}

func (s *Store) failed() bool {
	select {
	case <-s.failure:
		return true
	default:
		return false
	}
}

// pins counts the revisions that reads under way need, so that compaction
// leaves them on disk.
type pins struct {
	mu      sync.Mutex
	held    map[int64]int
	trimmed int64  // what only reads before this needed may be gone
	waiting bool   // compaction is held up by a pin
	nudge   func() // called when compaction may go on
}

// hold pins rev. It reports false when it may be gone already.
func (p *pins) hold(rev int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rev < p.trimmed {
		return false
	}
	p.held[rev]++
	return true
}

func (p *pins) release(rev int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[rev]--; p.held[rev] > 0 {
		return
	}
	delete(p.held, rev)
	if p.waiting {
		p.waiting = false
		p.nudge()
	}
}

// past returns the revision before which nothing is held.
func (p *pins) past() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trimmed
}

// trim announces that what only reads before to need is about to go, and
// returns how far that is allowed now. Beyond force pins are ignored.
func (p *pins) trim(to, force int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = false
	for rev := range p.held {
		if rev < to {
			to, p.waiting = rev, true
		}
	}
	p.trimmed = max(p.trimmed, to, force)
	return p.trimmed
}
