// Package testbed runs clusters of real moot processes on one machine and
// breaks them on purpose.
//
// Each node is a machine in small: its own network, mount, pid, uts, ipc and
// cgroup namespaces, its own root directory, /run, /dev/pts, bpffs and cgroup
// subtree, and an init process (this program, started again under another
// name) that reaps orphans and runs the daemon as a service manager would:
// Type=notify, KillMode=process. Nodes hang on a bridge in a network
// namespace of its own, which has no uplink: they reach each other, the
// bridge, registries started by RegistryUp and machines made by Machine, and
// nothing else.
//
// Everything is driven from outside through the built binaries; the package
// imports no other package of this module. The state of a cluster is one
// file, <dir>/state.json, replaced atomically and written before what it
// describes is created, so that Down works after a crash of any command. A
// process is named by pid and start time, so a reused pid is never signalled.
//
// A cluster of several nodes is made as its user would: the first daemon
// founds it, the others join it with a token that a member made.
//
// Faults: Kill ends the daemon alone and Stop asks it to end, Crash ends every
// process of a node and its link, Pause freezes a node, Cut drops all frames
// between two sets of nodes, CutOneWay those in one direction, Unplug pulls a
// node's cable. After Crash the node's disk is what the page cache holds: writes
// that were never fsynced are still there, which a real power loss does not
// promise. Lost writes below fsync are for the store's own tests.
//
// The package starts no goroutine that outlives a call. It refuses to touch
// processes, cgroups, mounts and namespaces that it did not create.
package testbed
