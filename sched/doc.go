// Package sched does the leader's work: it runs upstream's controllers and
// scheduler, and keeps the endpoints of the Service default/kubernetes, for as
// long as this node leads.
//
// Data flow: everything of one term reaches the API server through the term's
// gate, a listener on a loopback address that only this term ever has. When
// the term ends the gate is cut first: its connections are reset and nothing
// of the term, not even a goroutine that hangs and wakes later, finds a way to
// the store again. Only then are the controllers asked to stop.
//
// [Run] is one term. It owns the goroutines that it starts and builds all
// options afresh, so it can be called again and again in one process, one term
// at a time. [Exits] keeps upstream's calls to end the process to the end of
// the term.
//
// It refuses arguments that would lead a controller past the gate, and leader
// election by upstream's means: who leads is decided outside.
package sched
