// Package dns answers the cluster's names: CoreDNS, inside the daemon.
//
// Every node answers its own pods. CoreDNS listens on the gateway address of the
// node's pod network, which is reached from the cluster only, so it is no open
// resolver and leaves port 53 of the node's own addresses to whoever has it. The
// Service kube-system/kube-dns has no selector; each node keeps one EndpointSlice
// of its own behind it, and internalTrafficPolicy Local makes the Service proxy
// pick that one.
//
// Data flow: the user's configuration comes from the ConfigMap
// kube-system/coredns and, as snippets, from kube-system/coredns-custom. It is
// rewritten for life inside the daemon ([rewrite]): told where to listen, how to
// reach the API and which nameservers the host has, and rid of plugins that
// listen on ports of their own or may end the process. CoreDNS then loads it in
// place of what ran before, keeping its sockets. A configuration that does not
// load changes nothing: the one before stays, at a start the last one that
// loaded, and the reason goes to the log.
//
// What a Corefile answers about the cluster passes [wary] on its way out: pods
// of nodes that this node does not hear from are left out of it at once, while
// the EndpointSlices wait for the leader.
//
// CoreDNS's plugins log through the standard logger, and the kubernetes plugin
// takes klog's global logger at every load; [Config.RestoreKlog] gives it back.
//
// [Server.Run] owns the informers, the loop that reloads and CoreDNS's own
// goroutines, and stops them all. CoreDNS keeps global state: one Run at a time
// in a process.
//
// It refuses to import files of the host into a Corefile.
package dns
