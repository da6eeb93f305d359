// Package net connects a node's pods: it configures the pod network plugin and
// keeps the routes to the other nodes' pods. The Service proxy is in
// node/net/proxy.
//
// Data flow: the controllers give each Node a pod network (spec.podCIDRs); the
// agent watches Nodes, and on every change, and when the kernel's routing table
// changes, compares the whole of what should be with what is: forwarding on,
// the gateway address on the loopback interface, one route per other node by
// that node's internal address, and the plugin's configuration file. The file
// is written last, because the kubelet reports the node ready once it is there.
//
// The pod network is routed, not bridged: each pod hangs on a veth pair of its
// own with a route to its address, so that all its traffic passes the host's
// connection tracking and Services work between pods of one node without
// br_netfilter. Source addresses stay as they are inside the cluster; the plugin
// masquerades what leaves it. The gateway address sits on the loopback interface
// too, so that it answers before the first pod and DNS can listen there.
//
// A host firewall that drops forwarded packets, Docker's for one, is told to let
// pods pass.
//
// [Agent.Run] owns the goroutines: an informer, a listener for routing changes,
// and the loop that reconciles.
//
// It refuses to tunnel: nodes must share a link, or the routes between them must
// be somebody else's. A route that the kernel does not take is logged and tried
// again.
package net
