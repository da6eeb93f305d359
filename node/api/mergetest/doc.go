// Package mergetest puts what gossip/crdt makes of concurrent changes through
// Kubernetes' own validation. It holds tests only: gossip/crdt itself knows
// nothing of Kubernetes.
package mergetest
