package gossip

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// limitedLog writes one line a second at most, and says how many it left out.
type limitedLog struct {
	log *slog.Logger

	mu      sync.Mutex
	next    time.Time
	omitted int
}

func (l *limitedLog) write(level slog.Level, msg string, args ...any) {
	now := time.Now()
	l.mu.Lock()
	if now.Before(l.next) {
		l.omitted++
		l.mu.Unlock()
		return
	}
	l.next = now.Add(time.Second)
	omitted := l.omitted
	l.omitted = 0
	l.mu.Unlock()
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	l.log.Log(context.Background(), level, msg, args...)
}

// places bounds how many handshakes are under way: a few for each address, so
// that one stranger cannot take all, and many for all strangers together.
// Known members are not counted among the strangers.
type places[K comparable] struct {
	each, strangers int

	mu    sync.Mutex
	taken map[K]int
	total int
}

// take takes a place for k, and reports false when there is none.
func (p *places[K]) take(k K, known bool) (release func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[k] >= p.each || !known && p.total >= p.strangers {
		return nil, false
	}
	if p.taken == nil {
		p.taken = make(map[K]int)
	}
	p.taken[k]++
	if !known {
		p.total++
	}
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.taken[k]--; p.taken[k] == 0 {
			delete(p.taken, k)
		}
		if !known {
			p.total--
		}
	}), true
}
