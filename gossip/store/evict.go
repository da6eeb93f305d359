package store

// eviction bounds the keys of the event class, which pile up in memory for as
// long as their leases last. Its fields belong to the committer.
type eviction struct {
	limit int64
	bytes int64   // of the keys that exist
	keys  int     // that exist
	order []entry // puts, oldest first; some have been replaced since
}

// noteChange keeps account of a change to a key of the class.
func (e *eviction) noteChange(v, replaced *version, key []byte) {
	if replaced != nil {
		e.bytes -= int64(replaced.size)
		e.keys--
	}
	if v.deleted {
		return
	}
	e.bytes += int64(v.size)
	e.keys++
	e.order = append(e.order, entry{rev: v.rev, key: key})
}

// evict deletes the oldest keys of the event class until the rest fit. Those
// of other nodes get some more room, in which their own nodes delete them.
func (c *committer) evict(b *batch) {
	e := &c.events
	for e.bytes > e.limit && len(e.order) > 0 {
		oldest := e.order[0]
		alive, last := c.head.get(oldest.key)
		there := alive != nil && alive.rev == oldest.rev
		if there && alive.dot.Origin != c.head.claims.memory.Origin && e.bytes <= e.limit+e.limit/8 {
			break
		}
		e.order = e.order[1:]
		if there {
			c.delete(b, oldest.key, last, nil)
		}
	}
	if len(e.order) > 2*e.keys+1000 {
		c.forgetReplaced()
	}
}

// forgetReplaced drops the puts that are not the newest of their key.
func (c *committer) forgetReplaced() {
	kept := make([]entry, 0, c.events.keys)
	for _, e := range c.events.order {
		if alive, _ := c.head.get(e.key); alive != nil && alive.rev == e.rev {
			kept = append(kept, e)
		}
	}
	c.events.order = kept
}
