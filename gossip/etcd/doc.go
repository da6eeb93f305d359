// Package etcd serves the etcd v3 gRPC API over a [store.Store], so that an
// unmodified kube-apiserver, etcdctl or any other etcd v3 client can work on a
// node's own view of the cluster state.
//
// # Data flow
//
// A request arrives on a unix socket (mode 0600), is checked against the same
// rules etcd checks, becomes one call of the store, and its answer goes back
// with the revision the store gave it. The package keeps no state of its own
// but the open watch streams: what a client reads, and in which order, is the
// store's to decide. Store errors turn into etcd's own status errors in one
// place (errors.go), so that clients recognise them.
//
// # Goroutines
//
// [Server.Run] owns the accept loop and all that gRPC starts per connection
// and request. A watch stream has one goroutine that reads requests, one that
// ticks for progress notifications, and one for every open watch; responses of
// one stream are sent under one lock, so nothing queues here: a client that
// does not read holds up its own watches, which then wait in the store's
// bounded buffer. When Run returns, all of them are gone.
//
// # Bounds
//
//   - request size: Config.MaxRequestBytes plus 512 KiB of framing; a larger
//     one is refused with ResourceExhausted by gRPC, or "request is too large"
//     by the store.
//   - connections: Config.MaxConnections; further ones wait to be accepted.
//   - streams a connection: Config.MaxStreams; HTTP/2 makes the client wait.
//   - watches a stream: Config.MaxWatches; a further one is answered as
//     created and cancelled at once, with the reason.
//   - operations a transaction: Config.MaxTxnOps, else "too many operations".
//   - a watch response or RangeStream chunk: about 1 MiB, unless one value alone
//     is larger; longer batches are split, which needs no fragment flag because
//     no two events share a revision.
//
// # What is served
//
// KV: Range, RangeStream, Put, DeleteRange, Txn, Compact. Watch: Watch. Lease:
// LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive, LeaseLeases.
// Maintenance: Status, Alarm (listing only). Cluster: MemberList. And the
// standard gRPC health service. Everything else in the API answers
// Unimplemented with a sentence on what to do instead (refuse.go); DESIGN.md
// beside this file has the whole table.
//
// # What differs from etcd, on purpose
//
//   - Revisions grow but do not count: the next one is at least one more. A
//     transaction's changes each have a revision of their own, and the response
//     header carries the last of them.
//   - A transaction inside a transaction is refused.
//   - serializable and linearizable reads are the same: the answer is this
//     node's newest state.
//   - The revision of a created watch's header is where the watch starts: the
//     first event has a greater one.
package etcd
