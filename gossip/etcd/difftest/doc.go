// Package difftest compares the etcd API of gossip/etcd with a real etcd. Its
// tests drive both, in one process, through long random histories of the
// operations kube-apiserver issues, and require the same answers up to a map of
// revisions that keeps their order.
//
// A history is a pure function of its seed. Run one again, or longer, with
//
//	go test ./gossip/etcd/difftest -run Histories -seed 42
//	go test ./gossip/etcd/difftest -run Histories -for 30m -timeout 0
//
// The map of revisions: etcd numbers transactions, the store numbers changes.
// The histories run one operation at a time, so after each the newest revisions
// of both sides belong together, and the revisions our side went through since
// the last operation all stand for etcd's one. For an operation that makes one
// change, as all that kube-apiserver issues are, that is one to one; for
// one that makes several (deleting a range, revoking a lease, a transaction
// with many puts) the group stands for etcd's one revision, in the same order.
package difftest
