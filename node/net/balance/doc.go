// Package balance makes Services and EndpointSlices into what the kernel's data
// plane ([ebpf.Balancer]) serves. It is a proxy.Provider as kube-proxy's own
// are: upstream's trackers say what changed, upstream's rules say which
// endpoints a node may use (traffic policies, topology, termination), and
// [plan] says which frontends follow.
//
// Data flow: the handlers note what changed and wake the loop; the loop takes
// all that is noted, plans the Services concerned anew, compares with what was
// planned before and applies the difference, one Service at a time, so that an
// update of one backend touches the maps of one Service. Then sockets to what is
// gone are destroyed. Beside it, devices and addresses of the host are kept up
// to date from netlink.
//
// Services that this very daemon serves on every node (the API, DNS) are led to
// this node while it serves them, and to the others' while it does not: see
// [Home].
//
// [Proxier.Run] owns the loop and the netlink subscriptions; the handlers are
// called by the informers of whoever feeds it. What is in the kernel stays when
// it returns. It refuses SCTP, with an Event on the Service.
package balance
