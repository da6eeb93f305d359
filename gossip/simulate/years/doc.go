// Package years lets clusters live through years of faults in minutes.
//
// It is a discrete event simulation: one queue of events in order of simulated
// time, one goroutine, all chances drawn from a seed. The same seed replays the
// same history to the byte, which [Report.Trace] shows. Merging is the real core
// (package crdt); around it stands a model of what gossip/store and gossip do:
// group commit, dots that a crash never reissues, acknowledgement by one peer,
// tails that resume by vector or send a cut, tombstones that go when stable or
// after a bound, replicas that were away for too long and are wiped, a new
// incarnation after a restore, or a start in doubt. The model follows that code rule by rule; the
// store itself is tested against the same promises in its own package.
//
// Clients write all the time, more while something is wrong. Every few days the
// faults are lifted, and once the replicas say that they have it all, they are
// compared with each other and with what clients were told: see oracle.go.
//
// A rule can be broken on purpose ([Config.Break]), to show that it would be
// noticed.
package years
