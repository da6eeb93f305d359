package join

import (
	"sync"
	"time"
)

const (
	attemptsAtOnce  = 10              // from one address
	attemptEvery    = 2 * time.Second // after these
	limitedSources  = 1024            // remembered; one more forgets those that have waited
	sourceForgotten = attemptsAtOnce * attemptEvery
)

// limiter bounds attempts to join by source: a 128-bit secret cannot be
// guessed, but work and log lines can be caused.
type limiter struct {
	mu      sync.Mutex
	sources map[string]bucket
}

// bucket holds the time up to which a source's attempts are used.
type bucket struct{ until time.Time }

func newLimiter() *limiter { return &limiter{sources: map[string]bucket{}} }

func (l *limiter) allow(source string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.sources[source]
	if !known && len(l.sources) >= limitedSources && !l.forget(now) {
		return false
	}
	if b.until.Before(now) {
		b.until = now
	}
	if b.until.Sub(now) >= sourceForgotten {
		return false
	}
	b.until = b.until.Add(attemptEvery)
	l.sources[source] = b
	return true
}

// forget drops the sources that may start afresh.
func (l *limiter) forget(now time.Time) bool {
	for source, b := range l.sources {
		if !b.until.After(now) {
			delete(l.sources, source)
		}
	}
	return len(l.sources) < limitedSources
}

// throttle lets one thing through in a while and counts the rest.
type throttle struct {
	every time.Duration

	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (t *throttle) allow(now time.Time) (skipped int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.last.IsZero() && now.Sub(t.last) < t.every && !now.Before(t.last) {
		t.skipped++
		return 0, false
	}
	skipped, t.skipped, t.last = t.skipped, 0, now
	return skipped, true
}
