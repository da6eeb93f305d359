// Package store is the durable, multi-version key-value store of one node: what
// etcd is to other clusters, without the quorum.
//
// # Data flow
//
// A write is a [Txn]. Callers queue it; one committer takes everything queued,
// evaluates it in order against the head of the index and puts the changes in
// one batch of the log on disk. While that batch is being synced the committer
// evaluates what comes for the next. One publisher waits for each sync in turn, makes the batch
// visible as an immutable view, hands its changes to the watchers and then
// answers the callers. So nothing is seen before it is durable, and everything
// is seen in the order of its revision.
//
// A read takes the current view and needs no lock: the index in memory (key →
// versions) is a copy-on-write tree, values come from a small cache of recent
// changes or from the log. A watcher that keeps up is fed from memory; one that
// does not falls back to reading history.
//
// # Replication
//
// A key's state is an element of a join-semilattice (package crdt); the log's
// newest record of the key holds it. Keys of the replicated classes are
// exchanged with peers: a [Tail] reads this replica's history for a peer that
// knows what it has, and [Store.Apply] takes a peer's changes in, one batch and
// one local revision each. Where the change that came includes what is held,
// which the index tells, its bytes take the place; only concurrent changes are
// read and joined. What lost is kept under [ConflictPrefix].
//
// The [Store.Vector] says what a replica includes. It grows with the batch that
// makes it true, never ahead of it: with a local change, and with the end of
// what a peer sent, when the peer's own vector is taken over. So a replica that
// is in the middle of a cut, whose records are in no causal order, claims none
// of it, and the peers it passes the records on to do not either. [Store.Beyond]
// says what is there all the same.
//
// A peer is served from the history if it has all that the history tells of no
// more (view.past), else from a cut: the newest state of each key it lacks. A
// delete stays as a tombstone until [Store.SetStable] covers it or
// Config.TombstoneKeep is over; then it is noted as forgotten, and a peer that
// lacks it is refused ([ErrForgotten]) and must [Store.Wipe] itself.
//
// # On disk
//
// The log is a Pebble database keyed by revision. Keys of the memory class
// (see class.go) are never written to it, of Leases only who holds them (see
// holder.go). Ceilings for revisions and sequences are reserved ahead of use, so
// that none is issued twice whatever the clock or a crash does. An idle store
// writes nothing. What a peer sends in bulk goes in as sorted tables, past the
// journal: see bulk.go.
//
// # Goroutines
//
// [Store.Run] owns the committer, the publisher and the lease expiry; while a
// table of a batch is taken in, a goroutine that the publisher waits for. Each
// [Watcher] owns one goroutine, gone after Close. Pebble owns its own between
// [Open] and [Store.Close].
//
// # What it refuses
//
// Changes of peers that are malformed, of a class that stays on its node or
// stamped too far in the future ([ErrRejected], crdt.ErrDrift), peers that lack
// what is forgotten ([ErrForgotten]), requests over the size bound, reads and watches behind the history window
// ([ErrCompacted]), writes to disk when the disk is nearly full ([ErrNoSpace]),
// and a directory another process holds ([ErrLocked]). It knows nothing of
// Kubernetes but the key prefixes in class.go and what renews a Lease, and it deletes no damaged file.
package store
