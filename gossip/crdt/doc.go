// Package crdt is the pure core of the replicated store: the identity, order
// and stored form of a change.
//
// A change is a [Record]. Its [Dot] says who made it (an [Origin], one
// incarnation of one node's data) and which of that origin's changes it is. Its
// [Stamp], read from a hybrid logical [Clock], orders changes that know nothing
// of each other. Its [Revision] is its position in the history of the node that
// holds it.
//
// Everything here is a value or a function of its arguments: time is passed in,
// results are returned. The package does no I/O, reads no clock, starts no
// goroutine and knows nothing of Kubernetes.
package crdt
