// Package scenario holds what is done to a cluster of several nodes to see
// whether its promises hold: each scenario is a method of [Bed] that drives real
// daemons in a testbed, breaks them, and returns an error for a promise that does
// not hold. What it measures it prints; no time is ever a reason to fail, but the
// patience with which a condition is waited for.
//
// The same scenarios run small in the end-to-end tests and at full size in the
// accept command. [Run] makes the cluster, takes it down whatever happens, and
// looks for what is left of it on the machine.
//
// A scenario leaves the cluster whole: all nodes on, plugged in, not cut. Its
// clients sit on the bridge beside the nodes, where no cut reaches, but for what
// it runs on a node itself.
//
// Goroutines end with the call that started them. The package imports no other
// room of this module.
package scenario
