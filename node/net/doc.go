// Package net connects a node's pods: it gives the node its pod networks,
// configures the pod network plugin and keeps the ways to the other nodes' pods.
// The Service proxy is in node/net/proxy.
//
// Data flow: the agent watches Nodes, and on every change, and when the kernel's
// routing table changes, compares the whole of what should be with what is.
//
// First this node's pod networks (spec.podCIDRs, one of each cluster CIDR): it
// claims the part that its number names, or the next free one, and writes it to
// its own Node. Nobody is asked, so that a machine that boots alone or joins in
// a cut has a network at once. Networks that a Node has already stay, whoever
// gave them. Two nodes with one network, which is seen when a cut heals, are
// settled by age: the younger takes another and evicts, one after the other, the
// pods that have addresses of the old one.
//
// Then the kernel: forwarding on, the gateway address on the loopback interface,
// and one route for each other node's network. A node on a link of ours is the
// next hop itself. Behind a router, which knows no pods, it is reached through a
// VXLAN device: hardware addresses follow from the nodes' addresses, so that all
// entries follow from the Nodes and nothing is learned or asked. The device is
// there only while some node needs it, and its port is closed to all but members
// (an nftables table); packets are not encrypted. Pods made while it is there
// have an MTU that fits through it, older ones are told by the kernel.
//
// Last the plugin's configuration file, because the kubelet reports the node
// ready once it is there. With [ModeNone] the claim is all that happens: the
// plugin and the ways are somebody else's.
//
// The pod network is routed, not bridged: each pod hangs on a veth pair of its
// own with a route to its address, so that all its traffic passes the host's
// connection tracking and Services work between pods of one node without
// br_netfilter. Source addresses stay as they are between pods; the plugin
// masquerades what leaves the cluster's pod networks. The gateway address sits on
// the loopback interface too, so that it answers before the first pod and DNS can
// listen there; it is also what the node itself sends from through the overlay.
//
// A host firewall that drops forwarded packets, Docker's for one, is told to let
// pods pass.
//
// [Agent.Run] owns the goroutines: an informer, a listener for routing changes,
// and the loop that reconciles.
//
// It refuses to encrypt, and to talk to anything but the API and the kernel. What
// the kernel does not take is logged and tried again.
package net
