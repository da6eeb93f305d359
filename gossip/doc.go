// Package gossip makes equal nodes one cluster: who is a member, who leads, and
// how every member's store gets every other's changes.
//
// # Data flow
//
// One port carries everything, UDP and TCP (transport.go). UDP is memberlist's,
// encrypted with the gossip keyring. TCP is TLS 1.3 with certificates of the
// peer authority on both sides, routed by ALPN: moot-gossip to memberlist,
// moot-store to replication, moot-join to the caller's hook. serf keeps the
// membership over it; its tags carry what peers need to know of each other.
//
// Members tail each other's stores (follow.go, serve.go): a node sends its
// version vector, the peer answers with the records it lacks in the order the
// peer applied them, and goes on live. What was applied here is durable here,
// and is acknowledged; the first acknowledgement of a peer releases the writer
// that waits for it (ack.go). The lowest vector of all known members says which
// tombstones nobody needs (stable.go).
//
// Heartbeats on those streams give a local suspicion within a second. It is
// never gossiped: only serf declares a member dead. The leader is a pure
// function of the members (elect.go) and of their births, which greetings on the
// streams keep in the order of the times for which they have run (birth.go).
//
// # Goroutines
//
// [Agent.Run] owns them all: serf and memberlist, the listeners, one per peer
// that is tailed and one per peer that tails, the membership loop. When it
// returns they are gone and the port is free.
//
// # What it refuses
//
// Strangers, who see a closed connection and cost one log line a second at
// most; members of another cluster or major version, and a second member of one
// name, with an error that says so. Nothing about objects travels in serf's
// events or memberlist's broadcasts.
package gossip
