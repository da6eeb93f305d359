// Package crdt is the pure core of the replicated store: what a change is, and
// what becomes of changes that know nothing of each other.
//
// # Changes
//
// A [Dot] names a change: an [Origin], one incarnation of one node's data, and
// which of its changes it is. A [Stamp], read from a hybrid logical [Clock],
// orders changes of different origins. A [Revision] is a position in the
// history of the node that holds the change.
//
// A [Record] is a key after a change, with all that is known of it: stored,
// replicated and merged as one. [Put] and [Delete] make the record of a local
// write from the one that is held; [DescribeChange] says beforehand, where
// there is time for it, which places of the object the write changes. [Merge]
// joins a record from elsewhere into the one held.
//
// # The state of a key
//
// A state is an element of a join-semilattice and a function of the changes it
// includes, whatever way they came (Shapiro et al., "Conflict-free Replicated
// Data Types", 2011). It has:
//
//   - the version vector of the key's changes;
//   - lives: from a create to the delete. A life that one side lacks although
//     it has seen the create is over, also when the other side has changed it
//     since: a delete is final. The oldest life is visible; younger ones are
//     hidden, kept until the next local write, and listed as conflicts. Creates
//     that share a UID begin one life;
//   - claims, in each life: which write holds which place of the object. At
//     each place the newer of two writes of all that is there stays; where
//     both sides have the same, what is below is joined. So a change inside
//     what the other side removed or replaced goes with it, and an object is
//     never half of one thing and half of another.
//
// When one side includes the other, which the version vectors tell, its record
// is taken as it is and no value is decoded. The same goes for each life, which
// has a vector of its own: what a key went through before a life began leaves
// no trace in its value, for one replica may have forgotten that and another
// not. Only truly concurrent changes are joined place by place. What a join does
// not keep is a [Conflict].
//
// # Objects stay legal
//
// What the lists of an object are told apart by, which maps and lists are one
// value, and which fields go together, the writer looks up in its [Schema] and
// in the groups of the kind. It travels with the change: a merge asks no
// schema, so replicas of different versions come to the same bytes. Besides,
//
//   - generation is the sum of what each origin raised it by, so that a join of
//     two specs has one that no controller has observed;
//   - an object at the end of its deletion is gone in the join;
//   - entries of managedFields merge per manager, and who owns a field goes
//     with the field's value;
//   - values in different stored versions, and values that are no objects, are
//     not mixed: one stays whole.
//
// Everything here is a value or a function of its arguments: time is passed in,
// results are returned. The package does no I/O, reads no clock, starts no
// goroutine and does not import Kubernetes.
package crdt
