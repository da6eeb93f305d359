// Package store is the durable, multi-version key-value store of one node: what
// etcd is to other clusters, without the quorum.
//
// # Data flow
//
// A write is a [Txn]. Callers queue it; one committer takes everything queued,
// evaluates it in order against the head of the index and puts the changes in
// one batch of the log on disk. While that batch is being synced the committer
// evaluates the next. One publisher waits for each sync in turn, makes the batch
// visible as an immutable view, hands its changes to the watchers and then
// answers the callers. So nothing is seen before it is durable, and everything
// is seen in the order of its revision.
//
// A read takes the current view and needs no lock: the index in memory (key →
// versions) is a copy-on-write tree, values come from a small cache of recent
// changes or from the log. A watcher that keeps up is fed from memory; one that
// does not falls back to reading history.
//
// # On disk
//
// The log is a Pebble database keyed by revision. Keys of the memory class
// (see class.go) are never written to it. Ceilings for revisions and sequences
// are reserved ahead of use, so that none is issued twice whatever the clock or
// a crash does. An idle store writes nothing.
//
// # Goroutines
//
// [Store.Run] owns the committer, the publisher and the lease expiry. Each
// [Watcher] owns one goroutine, gone after Close. Pebble owns its own between
// [Open] and [Store.Close].
//
// # What it refuses
//
// Requests over the size bound, reads and watches behind the history window
// ([ErrCompacted]), writes to disk when the disk is nearly full ([ErrNoSpace]),
// and a directory another process holds ([ErrLocked]). It knows nothing of
// Kubernetes but the key prefixes in class.go, and it deletes no damaged file.
package store
