// Package api runs the Kubernetes API server inside the daemon: upstream's
// kube-apiserver, its aggregation layer and its extension API server, in one
// chain over the store's etcd API.
//
// Data flow: clients, over TLS on the node's port → [Config.Filter] →
// upstream's handler chain → the guard against other nodes' resource versions
// → storage → a unix socket where the store serves the etcd API.
//
// [New] checks the settings and the user's arguments, [Server.Run] builds the
// chain, serves until its context ends and owns every goroutine it starts;
// [Server.Ready] tells when /readyz has said ok. The upstream code registers
// metrics, feature gates and capabilities for the whole process, so a process
// can hold one Server in its life. WRITERS.md lists what an API server writes
// by itself.
//
// All is stored as JSON that names its kind, custom resource definitions in
// their version v1, so that changes can be merged field by field.
//
// What makes many such servers one cluster's: the guard (guard.go, place.go)
// answers for resource versions that another node gave out; shared UIDs
// (identity.go) make one object of what several nodes make; the filter in the
// servers' own client (leader.go) leaves to the leader what one node does for
// all; the ports (ports.go) follow the Services of all nodes.
//
// It refuses arguments that the daemon owns, encryption of stored values and
// their encoding as CBOR: ciphertext and unknown encodings cannot be merged.
package api
