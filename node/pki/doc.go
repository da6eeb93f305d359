// Package pki keeps the keys and certificates of a node: the cluster's
// authorities, which every member holds, and what this node issues to itself
// from them.
//
// Data flow: [Ensure] reads the directory, issues what is missing, about to
// expire or no longer fits the node's names and addresses, and returns the
// paths. Calling it again changes nothing. A joining node first writes the
// cluster's [Material] with [Import]. Every file is written beside its place,
// synced and renamed, and a key always before its certificate, so a crash at
// any moment leaves a directory that the next call completes.
//
// Members recognise each other by an authority of their own ([Bundle.Peers],
// [PeerIdentity]), which signs nothing else: what an API client holds makes no
// member, and the reverse. That authority and the gossip keys can be replaced
// while all members run, in three [Stages]; node/pki/rotation walks them
// through. The Kubernetes authorities and the service account key are not
// replaced: running pods, kubeconfigs and issued tokens depend on them.
//
// The package starts no goroutine and reads no clock; the caller passes the
// time and makes sure that one process at a time works on the directory.
//
// It refuses to replace an authority or the service account key that it cannot
// read: everything ever issued would stop working without a word. Certificates
// issued from a readable authority are simply issued again.
package pki
