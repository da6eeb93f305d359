package store

import (
	"bytes"
	"strings"
)

// class says where the changes of a key are kept and whether peers get them.
type class struct {
	name       string
	durable    bool // written to disk before it is visible
	replicated bool // sent to peers
	evicted    bool // the oldest go when there are too many
	holders    bool // changes of who holds a Lease are on disk as well, see holder.go
}

// The classes of keys.
var (
	// localMemory is this node's own bookkeeping, rebuilt after a start.
	localMemory = class{name: "local-memory"}
	// localDurable is this node's own state, rebuilt from replicated objects
	// but cheaper to keep.
	localDurable = class{name: "local", durable: true}
	// memory changes so often and matters so briefly that no disk sees it.
	memory = class{name: "memory", replicated: true}
	// lock is memory for what is renewed all the time by who holds it.
	lock = class{name: "lock", replicated: true, holders: true}
	// event is memory for what piles up.
	event = class{name: "event", replicated: true, evicted: true}
	// derived is going to be computed from membership where it is read. Until
	// then it is kept as memory is.
	derived = class{name: "derived"}
	// durable is everything else.
	durable = class{name: "durable", durable: true, replicated: true}
)

// The range of the lock class.
const (
	locksFrom = "/registry/leases/"
	locksEnd  = "/registry/leases0"
)

// classTable decides a key's class: the first row that matches wins. A prefix
// that ends in "/" matches all keys below it, any other the exact key. Keys
// that match no row are durable.
var classTable = []struct {
	prefix string
	class  class
}{
	{"compact_rev_key", localMemory},               // the apiservers' compaction clock
	{"/registry/health", localMemory},              // probed, never written
	{"/registry/ranges/", localDurable},            // allocation bitmaps, repaired from Services
	{"/registry/leases/kube-node-lease/", derived}, // node heartbeats
	{locksFrom, lock},                              // leader election, apiserver identity
	{"/registry/events/", event},                   // Events
	{"/registry/masterleases/", memory},            // apiserver endpoints
	{"/moot/local/", localDurable},                 // this node's own
	{leaseKeyPrefix, memory},                       // leases that are kept alive
}

func classOf(key []byte) class {
	for i := range classTable {
		row := &classTable[i]
		if strings.HasSuffix(row.prefix, "/") {
			if len(key) > len(row.prefix) && string(key[:len(row.prefix)]) == row.prefix {
				return row.class
			}
		} else if string(key) == row.prefix {
			return row.class
		}
	}
	return durable
}

// onDisk returns the class as the keys of the log have it: what is on disk is
// durable, whatever an older version took its class for.
func (c class) onDisk() class {
	c.durable = true
	return c
}

// counted reports whether keys of the class are part of the digest.
func (c class) counted() bool { return c.durable && c.replicated }

// touchesVolatile reports whether [key, end) can hold keys that a restart
// forgets. End is as in [Compare].
func touchesVolatile(key, end []byte) bool {
	if len(end) == 0 {
		return !classOf(key).durable
	}
	for i := range classTable {
		row := &classTable[i]
		if row.class.durable {
			continue
		}
		first := []byte(row.prefix)
		after := append(bytes.Clone(first), 0)
		if strings.HasSuffix(row.prefix, "/") {
			after = append(bytes.Clone(first[:len(first)-1]), '/'+1)
		}
		if bytes.Compare(key, after) < 0 && (isFromKey(end) || bytes.Compare(end, first) > 0) {
			return true
		}
	}
	return false
}

// isFromKey reports whether end means "all keys from the first on".
func isFromKey(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// inRange reports whether k is in the range of key and end, as in [Compare].
func inRange(k, key, end []byte) bool {
	if len(end) == 0 {
		return bytes.Equal(k, key)
	}
	return bytes.Compare(k, key) >= 0 && (isFromKey(end) || bytes.Compare(k, end) < 0)
}
