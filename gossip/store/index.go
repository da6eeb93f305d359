package store

import (
	"bytes"
	"slices"
	"sort"

	"github.com/google/btree"

	"github.com/mootkube/moot/gossip/crdt"
)

// indexDegree is the branching of the index tree: low enough that copying a
// node on write is cheap.
const indexDegree = 16

// version is one version of a key: all a read or a compare needs but the
// value.
type version struct {
	rev     int64
	create  int64
	version int64
	lease   int64
	dot     crdt.Dot
	born    crdt.Stamp   // when this life of the key began, wherever that was
	sum     uint64       // its share of the digest
	rec     *crdt.Record // the change itself, for keys kept in memory only
	size    int32        // bytes of key, value and state
	uid     uint32       // hash of the object's UID, which tells lives apart
	deleted bool
	joined  bool // the dot does not stand for all that is included
	silent  bool // a delete of a key that did not exist: no event
}

func newVersion(r *crdt.Record, c class, born crdt.Stamp) version {
	v := version{
		rev:     int64(r.Mod),
		create:  int64(r.Create),
		version: r.Version,
		lease:   r.Lease,
		dot:     r.Dot,
		born:    born,
		size:    int32(len(r.Key) + len(r.Value) + len(r.Meta)),
		uid:     hashUID(r.UID),
		deleted: r.Deleted,
		joined:  r.Joined(),
	}
	if c.counted() {
		v.sum = digestOf(r)
	}
	if !c.durable {
		v.rec = r
	}
	return v
}

// item is a key and its versions, oldest first, never empty.
//
// An item in a tree is immutable. A new version makes a new item whose slice
// may share the older one's array: readers of the older item never look beyond
// its length, and only the committer appends.
type item struct {
	key      []byte
	versions []version
}

func (it *item) newest() *version { return &it.versions[len(it.versions)-1] }

// position returns the index of the newest version at or before rev, -1 for
// none.
func (it *item) position(rev int64) int {
	if n := len(it.versions); it.versions[n-1].rev <= rev {
		return n - 1
	}
	return sort.Search(len(it.versions), func(i int) bool { return it.versions[i].rev > rev }) - 1
}

// at returns the version that a read at rev sees, nil for none.
func (it *item) at(rev int64) *version {
	i := it.position(rev)
	if i < 0 || it.versions[i].deleted {
		return nil
	}
	return &it.versions[i]
}

// between reports whether version i is no change of anyone's: the delete
// between two lives, where one change of a peer brought another object.
func (it *item) between(i int) bool {
	return it.versions[i].deleted && i+1 < len(it.versions) && it.versions[i+1].dot == it.versions[i].dot
}

// tree is the index: items by key.
type tree = btree.BTreeG[*item]

func newTree() *tree {
	return btree.NewG(indexDegree, func(a, b *item) bool { return bytes.Compare(a.key, b.key) < 0 })
}

// entry is one change in the history, the newest of which are the last.
type entry struct {
	rev        int64
	dot        crdt.Dot
	size       int32
	memory     bool // only memory holds it
	replicated bool
	joined     bool // as of the version
	key        []byte
}

// view is the state at one revision. It is immutable and may be read without
// a lock for as long as one likes, though values behind the floor go away.
type view struct {
	items   *tree
	history []entry // changes at or after the floor, in order of revision
	rev     int64   // the newest revision
	floor   int64   // reads before it are refused
	boot    int64   // keys kept in memory have no past before it

	claims    claims      // the changes included
	marks     []mark      // how the claims on peers' changes grew along the history
	past      crdt.Vector // includes the changes that history tells of no more; immutable
	forgotten crdt.Vector // includes the deletes that are forgotten; immutable
	owed      crdt.Vector // what a peer must include to fill a wiped replica, nil for a whole one; immutable
	beyond    crdt.Vector // changes that are here and not included; immutable
	digest    Digest
}

// scan calls fn with each key of the range that exists at rev, in key order,
// until fn returns false.
func (v *view) scan(key, end []byte, rev int64, fn func(*item, *version) bool) {
	if len(end) == 0 {
		if it, ok := v.items.Get(&item{key: key}); ok {
			if ver := it.at(rev); ver != nil {
				fn(it, ver)
			}
		}
		return
	}
	visit := func(it *item) bool {
		if ver := it.at(rev); ver != nil {
			return fn(it, ver)
		}
		return true
	}
	if isFromKey(end) {
		v.items.AscendGreaterOrEqual(&item{key: key}, visit)
		return
	}
	v.items.AscendRange(&item{key: key}, &item{key: end}, visit)
}

// checkRevision reports whether the range can be read at rev.
func (v *view) checkRevision(key, end []byte, rev int64) error {
	switch {
	case rev > v.rev:
		return ErrFutureRevision
	case rev < v.floor:
		return ErrCompacted
	case rev < v.boot && touchesVolatile(key, end):
		return ErrCompacted
	}
	return nil
}

// checkWatch reports whether a watch of the range can start at rev.
func (v *view) checkWatch(key, end []byte, rev int64) error {
	if rev < v.floor || rev < v.boot && touchesVolatile(key, end) {
		return ErrCompacted
	}
	return nil
}

// since returns the history from rev on.
func (v *view) since(rev int64) []entry {
	i := sort.Search(len(v.history), func(i int) bool { return v.history[i].rev >= rev })
	return v.history[i:]
}

// find returns the version that an entry of the history is about as an item
// and a position in it, -1 when it is gone.
func (v *view) find(e entry) (*item, int) {
	it, ok := v.items.Get(&item{key: e.key})
	if !ok {
		return nil, -1
	}
	if i := it.position(e.rev); i >= 0 && it.versions[i].rev == e.rev {
		return it, i
	}
	return nil, -1
}

// head is the index as the committer works on it: ahead of every view. Only
// the committer touches it.
type head struct {
	view
	historyBytes  int64
	historyMemory int64 // the part that only memory holds
}

// account adds an entry to the sizes of the history, or with sign -1 takes it
// out.
func (h *head) account(e entry, sign int64) {
	h.historyBytes += sign * int64(e.size)
	if e.memory {
		h.historyMemory += sign * int64(e.size)
	}
}

// get returns the newest version of key, nil when it does not exist, and the
// newest change of it, which is a delete then, nil when nothing is known of
// the key.
func (h *head) get(key []byte) (alive, last *version) {
	it, ok := h.items.Get(&item{key: key})
	if !ok {
		return nil, nil
	}
	last = it.newest()
	if last.deleted {
		return nil, last
	}
	return last, last
}

// add appends a change to the index and the history. It returns the key as the
// index holds it.
func (h *head) add(key []byte, v version) []byte {
	next := &item{key: key}
	if old, ok := h.items.Get(next); ok {
		next.key = old.key
		h.digest = h.digest.without(old.newest())
		next.versions = append(old.versions, v)
	} else {
		next.key = bytes.Clone(key) // which would hold on to the message that it came in
		next.versions = append(make([]version, 0, 1), v)
	}
	h.items.ReplaceOrInsert(next)
	h.digest = h.digest.with(&v)
	e := entry{
		rev: v.rev, dot: v.dot, size: v.size, memory: v.rec != nil,
		replicated: classOf(key).replicated, joined: v.joined, key: next.key,
	}
	h.history = append(h.history, e)
	h.account(e, 1)
	h.rev = v.rev
	return next.key
}

// remove takes a key out of the index, and out of the digest.
func (h *head) remove(it *item) {
	h.items.Delete(it)
	h.digest = h.digest.without(it.newest())
}

// freeze returns the present state as a view.
func (h *head) freeze() *view {
	v := h.view
	v.items = h.items.Clone()
	v.history = slices.Clip(h.history)
	v.marks = slices.Clip(h.marks)
	return &v
}

// trim forgets up to limit history entries before to and returns the versions
// that no read at or after to needs. It reports whether it is done. Each
// replicated version that history tells of no more goes through note first.
func (h *head) trim(to int64, limit int, note func(*version)) (garbage []version, done bool) {
	n := 0
	for n < len(h.history) && n < limit && h.history[n].rev < to {
		e := &h.history[n]
		h.account(*e, -1)
		garbage = h.trimKey(garbage, e.key, to, note)
		n++
	}
	h.history = h.history[n:]
	done = len(h.history) == 0 || h.history[0].rev >= to
	n = 0
	for n < len(h.marks) && (len(h.history) == 0 || h.marks[n].rev < h.history[0].rev) {
		n++
	}
	h.marks = h.marks[n:]
	return garbage, done
}

// trimKey drops the versions of key that no read at or after to needs: those
// with a successor at or before to, and a delete before to. A delete that
// peers may need stays, as a tombstone.
func (h *head) trimKey(garbage []version, key []byte, to int64, note func(*version)) []version {
	it, ok := h.items.Get(&item{key: key})
	if !ok {
		return garbage
	}
	replicated := classOf(key).replicated
	drop := it.position(to)
	if replicated {
		for i := 0; i <= drop && it.versions[i].rev < to; i++ {
			note(&it.versions[i])
		}
	}
	if drop >= 0 && it.versions[drop].deleted && it.versions[drop].rev < to && !replicated {
		drop++
	}
	if drop <= 0 {
		return garbage
	}
	garbage = append(garbage, it.versions[:drop]...)
	if drop == len(it.versions) {
		h.items.Delete(it)
		return garbage
	}
	h.items.ReplaceOrInsert(&item{key: it.key, versions: slices.Clone(it.versions[drop:])})
	return garbage
}
