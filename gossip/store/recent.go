package store

import (
	"sync"

	"github.com/mootkube/moot/gossip/crdt"
)

// recent holds the newest durable changes in memory: those on their way to the
// disk, which nothing else holds yet, and as many of the ones before as fit.
type recent struct {
	limit int64

	mu      sync.RWMutex
	records map[int64]*crdt.Record
	order   []int64 // revisions held, oldest first
	bytes   int64
}

func newRecent(limit int64) *recent {
	return &recent{limit: limit, records: make(map[int64]*crdt.Record)}
}

func recordBytes(r *crdt.Record) int64 { return int64(len(r.Key)+len(r.Value)) + 256 }

func (c *recent) add(r *crdt.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records[int64(r.Mod)] = r
	c.order = append(c.order, int64(r.Mod))
	c.bytes += recordBytes(r)
}

func (c *recent) get(rev int64) *crdt.Record {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.records[rev]
}

// shrink lets go of the oldest changes while the limit is exceeded, but of
// none after durable, the last revision known to be on disk.
func (c *recent) shrink(durable int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.order) && c.bytes > c.limit && c.order[n] <= durable {
		rev := c.order[n]
		c.bytes -= recordBytes(c.records[rev])
		delete(c.records, rev)
		n++
	}
	c.order = c.order[n:]
}
