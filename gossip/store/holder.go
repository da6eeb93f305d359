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
// A delete takes its place there, too, until its tombstone goes. A replica that was
// down for so long that peers may have forgotten a delete forgets its Leases.
//
// What a start finds has dots of an origin that ended with the start before. Peers
// that ran on claim it, and tell what else it did. When all were down, nobody can
// claim it any more, as nobody has all that it did: its changes are orphans. No
// vector tells of them, so they are in none that a peer is held to.

func holderKey(key []byte) []byte { return append([]byte{holderPrefix}, key...) }

// keepHolder puts a change of a Lease on disk unless it only renews the version
// before it, nil for none, and reports whether it did.
func (c *committer) keepHolder(b *batch, r *crdt.Record, before *version) bool {
	key := string(r.Key)
	_, kept := c.holders[key]
	says := holding(r.Value)
	isLease := r.Lease == 0 && says != nil
	if !kept && !isLease || kept && isLease && before != nil && reflect.DeepEqual(holding(before.rec.Value), says) {
		return false // nothing to keep, or a renewal
	}
	if !isLease && !r.Deleted || c.space() != nil {
		// Without room the lock counts for more than its copy, and none is better than
		// one of before. The next renewal tries again.
		if kept {
			c.must(c.disk(b).Delete(holderKey(r.Key), nil))
			delete(c.holders, key)
		}
		return false
	}
	c.must(c.disk(b).Set(holderKey(r.Key), crdt.AppendRecord(nil, r), nil))
	c.holders[key] = struct{}{}
	return true
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

// readHolders reads what is on disk of Leases. One that cannot be read is left out:
// its holder renews it, or another takes it.
func (s *Store) readHolders() (records []*crdt.Record, err error) {
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{holderPrefix}, UpperBound: []byte{holderPrefix + 1}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; ok = iter.Next() {
		r, err := crdt.DecodeRecord(bytes.Clone(iter.Value()))
		if err == nil && (!bytes.Equal(iter.Key()[1:], r.Key) || !classOf(r.Key).holders) {
			err = fmt.Errorf("it is of %q", r.Key)
		}
		if err != nil {
			s.cfg.Log.Warn("a lease on disk cannot be read", "key", string(iter.Key()[1:]), "err", err)
			continue
		}
		records = append(records, r)
	}
	return records, iter.Error()
}

// recoverHolders gives what the disk has of Leases a place in the history of this
// start, in which they are in memory only; b takes what must not come back off the
// disk.
func (c *committer) recoverHolders(b *pebble.Batch, records []*crdt.Record, now time.Time) {
	if c.owed != nil {
		for _, r := range c.owed.aside {
			c.noteOrphans(r) // it comes back once the replica is filled
		}
	}
	keep := c.store.cfg.TombstoneKeep
	if last := c.reserved.ranUntil(c.store.cfg.RevisionReserve); len(records) > 0 && now.Sub(last) >= keep {
		c.store.cfg.Log.Warn("leases of long ago are forgotten", "leases", len(records), "last run", last)
		c.must(b.DeleteRange([]byte{holderPrefix}, []byte{holderPrefix + 1}, nil))
		return
	}
	for _, r := range records {
		if r.Deleted && now.Sub(r.Mod.Time()) >= keep {
			c.must(b.Delete(holderKey(r.Key), nil))
			continue
		}
		c.noteOrphans(r)
		c.rev = c.rev.Next(now, c.node)
		c.clock.High = max(c.clock.High, r.Latest())
		r.Mod, r.Create, r.Version = c.rev, 0, 0
		if !r.Deleted {
			r.Create, r.Version = c.rev, 1
		}
		v := newVersion(r, classOf(r.Key), r.Born())
		v.silent = r.Deleted
		key := c.head.add(r.Key, v)
		if r.Deleted {
			c.graves.recovered = append(c.graves.recovered, grave{rev: v.rev, key: key})
		}
		c.holders[string(key)] = struct{}{}
	}
}

// noteOrphans notes which origins of a record from disk ended with the start before.
func (c *committer) noteOrphans(r *crdt.Record) {
	for o := range r.Seen() {
		if isVolatile(o) {
			c.orphans[o] = 0
		}
	}
}

// leaveDot notes that history tells of a change no more, unless it is an orphan: of
// these it notes how far that goes, for when a peer is met that claims them.
func (c *committer) leaveDot(past crdt.Vector, d crdt.Dot) {
	seq, orphan := c.orphans[d.Origin]
	if !orphan || c.head.claims.covers(d) {
		past.Note(d)
		return
	}
	c.orphans[d.Origin] = max(seq, d.Seq)
}

// adoptOrphans has the past take over what is claimed now.
func (c *committer) adoptOrphans(news []crdt.Dot) {
	var past crdt.Vector
	for _, d := range news {
		seq, ok := c.orphans[d.Origin]
		if !ok || seq > d.Seq {
			continue
		}
		delete(c.orphans, d.Origin)
		if seq == 0 {
			continue
		}
		if past == nil {
			past = c.head.past.Clone()
		}
		past.Note(crdt.Dot{Origin: d.Origin, Seq: seq})
	}
	if past != nil {
		c.head.past = past
	}
}

// orphans returns the Leases that a peer cannot know of by the history, which tells
// of them no more, nor by a vector.
func (v *view) orphans() (all []*version) {
	var from int64
	if len(v.history) > 0 {
		from = v.history[0].rev
	}
	v.items.AscendRange(&item{key: []byte(locksFrom)}, &item{key: []byte(locksEnd)}, func(it *item) bool {
		n := it.newest()
		if classOf(it.key).holders && (from == 0 || n.rev < from) && (n.joined || !v.claims.covers(n.dot)) {
			all = append(all, n)
		}
		return true
	})
	return all
}
