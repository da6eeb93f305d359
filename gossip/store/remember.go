package store

import "github.com/mootkube/moot/gossip/crdt"

// Remembered returns the changes of key that this replica knows of when the key
// holds nothing, and nil when it holds something or nothing is known. Replicas
// that know of the same deletes return the same. A delete is remembered for as
// long as its revision has not been compacted, and longer while a peer may not
// have it.
func (s *Store) Remembered(key []byte) crdt.Vector {
	it, ok := s.view.Load().items.Get(&item{key: key})
	if !ok {
		return nil
	}
	last := it.newest()
	if !last.deleted {
		return nil
	}
	r, err := s.record(last)
	if err != nil {
		return nil // forgotten meanwhile, or damaged, which a write of the key will tell
	}
	return r.Seen()
}
