// Package host sets what the network agent and the pod network plugin both
// need of the host: that it forwards packets, and that pods leave the cluster
// with the node's address. The plugin needs it for the pods that start before
// the daemon has looked at the network, the agent puts it back when another
// program took it away.
//
// It owns no goroutine and keeps no state. It reads first and writes only a
// difference, so that both may call it at any time.
package host
