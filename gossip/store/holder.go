package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// Leases are renewed every few seconds, which no disk should see, but who holds
// one must outlive the daemons: another would take the lock otherwise while its
// holder goes on. So a change of a Lease that is more than a renewal is put on
// disk as well: the record, under its key, in place of the one before. A start
// finds there what this replica once held, and peers that know more tell.
//
// A delete takes its place there, too, until its tombstone goes. A replica that was down
// for so long that peers may have forgotten a delete forgets its Leases.

func holderKey(key []byte) []byte { return append([]byte{holderPrefix}, key...) }

// keepHolder puts a change of a Lease on disk unless it only renews the version
// before it, nil for none, and reports whether it did.
func (c *committer) keepHolder(b *batch, r *crdt.Record, before *version) bool {
	key := string(r.Key)
	current, onDisk := c.holders[key]
	switch isLease := r.Lease == 0 && holding(r.Value) != nil; {
	case !onDisk && !isLease:
		return false
	case !isLease && !r.Deleted:
		c.must(c.disk(b).Delete(holderKey(r.Key), nil))
		delete(c.holders, key)
		return false
	case current && before != nil && renews(before.rec.Value, r.Value):
		return false
	}
	if c.checkSpace(!r.Deleted, r.Deleted) != nil {
		// The lock counts for more than its copy. The next renewal tries again.
		if onDisk {
			c.holders[key] = false
		}
		return false
	}
	c.must(c.disk(b).Set(holderKey(r.Key), crdt.AppendRecord(nil, r), nil))
	c.holders[key] = true
	return true
}

// renews reports whether two states of a Lease differ in nothing but what each
// renewal changes.
func renews(before, after []byte) bool {
	held := holding(before)
	return held != nil && reflect.DeepEqual(held, holding(after))
}

// leaseObject is a Lease of coordination.k8s.io/v1 as the API server stores it.
type leaseObject struct {
	Kind     string         `json:"kind"`
	Metadata map[string]any `json:"metadata"`
	Spec     map[string]any `json:"spec"`
}

// holding returns what a Lease says apart from when it was renewed, nil for a
// value that is no Lease in JSON.
func holding(value []byte) *leaseObject {
	var l leaseObject
	if err := json.Unmarshal(value, &l); err != nil || l.Kind != "Lease" {
		return nil
	}
	delete(l.Metadata, "managedFields")
	delete(l.Spec, "renewTime")
	return &l
}

// dropHolders takes the records of keys that are gone off the disk.
func (c *committer) dropHolders(keys [][]byte) {
	var b *pebble.Batch
	for _, key := range keys {
		if _, ok := c.holders[string(key)]; !ok {
			continue
		}
		delete(c.holders, string(key))
		if b == nil {
			b = c.store.db.NewBatch()
		}
		c.must(b.Delete(holderKey(key), nil))
	}
	if b == nil {
		return
	}
	// It does not wait for the disk: what stays are tombstones.
	if err := errors.Join(b.Commit(pebble.NoSync), b.Close()); err != nil {
		c.store.cfg.Log.Warn("deleted leases stay on disk", "err", oneLine(err.Error()))
	}
}

// readHolders reads what is on disk of Leases.
func readHolders(db *pebble.DB) (records []*crdt.Record, err error) {
	iter, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{holderPrefix}, UpperBound: []byte{holderPrefix + 1}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; ok = iter.Next() {
		r, err := crdt.DecodeRecord(bytes.Clone(iter.Value()))
		if err != nil {
			return nil, fmt.Errorf("read lease %q: %w", iter.Key()[1:], err)
		}
		records = append(records, r)
	}
	return records, iter.Error()
}

// recoverHolders gives what the disk has of Leases a place in the history of this
// start, in which they are in memory only. Last is when the store ran at the least;
// b takes what must not come back off the disk.
func (c *committer) recoverHolders(b *pebble.Batch, records []*crdt.Record, last, now time.Time) {
	if len(records) > 0 && now.Sub(last) >= c.store.cfg.TombstoneKeep {
		c.must(b.DeleteRange([]byte{holderPrefix}, []byte{holderPrefix + 1}, nil))
		return
	}
	for _, r := range records {
		cls := classOf(r.Key)
		c.rev = c.rev.Next(now, c.node)
		c.clock.High = max(c.clock.High, r.Latest())
		r.Mod, r.Create, r.Version = c.rev, 0, 0
		if !r.Deleted {
			r.Create, r.Version = c.rev, 1
		}
		v := newVersion(r, cls, r.Born())
		v.silent = r.Deleted
		key := c.head.add(r.Key, v)
		if r.Deleted {
			c.graves.add(grave{rev: v.rev, key: key}, cls)
		}
		c.holders[string(key)] = true
	}
}
