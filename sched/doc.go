// Package sched does the leader's work: it runs upstream's controllers and
// scheduler, keeps the endpoints of the Service default/kubernetes, repairs the
// addresses of Services, and brings the Nodes in line with the membership, for
// as long as this node leads.
//
// Data flow: everything of one term reaches the API server through the term's
// gate, a listener on a loopback address that only this term ever has. When
// the term ends the gate is cut first: its connections are reset and nothing
// of the term, not even a goroutine that hangs and wakes later, finds a way to
// the store again. Only then are the controllers asked to stop. The gate also
// shuts by itself when the process stood still for longer than Config.MaxPause.
//
// Nodes: Config.Nodes says how each member is. The decision what becomes of
// each is a pure function, judge, looked at again after every change; the
// keeper then writes what is missing. Nothing is kept beside the objects, so
// that the next leader goes on where the last one was.
//
//	member      Lease    Node object          its pods
//	alive       renewed  marks taken back     back in the endpoints
//	suspect     renewed  as it is             out of the endpoints at once
//	restarting  renewed  no new pods          as they are
//	dead        –        Ready is Unknown     moved by upstream, out of the endpoints
//	dead, held  renewed  no new pods          out of the endpoints
//	not heard of since this node started: as held, for a minute
//	left        deleted  deleted              deleted
//
// Renewed Leases are of this node's own store; the other kubelets renew theirs
// in their own. They keep upstream's node controller content: it decides by
// the Ready condition, and the leader writes that the moment a member is
// declared dead. From there on everything is upstream's: the taint within a
// second, the eviction after the pods' tolerationSeconds, the replacement. A
// pod of a StatefulSet stays, terminating, until its node is back or removed.
//
// The brake: of the members that were there until a moment ago, when more than
// half are silent or dead, none is given up: it is more likely that this node
// is the one that is cut off. New pods still start where nodes are alive. It
// ends when enough members are back, or after Config.BrakeFor. Members given
// up before do not count, so that crashes one after the other are each acted
// upon, down to the last node; and of two nodes, one is not more than half.
//
// [Run] is one term. It owns the goroutines that it starts and builds all
// options afresh, so it can be called again and again in one process, one term
// at a time. [Exits] keeps upstream's calls to end the process to the end of
// the term.
//
// It refuses arguments that would lead a controller past the gate, and leader
// election by upstream's means: who leads is decided outside.
package sched
