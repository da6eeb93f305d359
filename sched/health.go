package sched

import "time"

// NodeState is what the membership holds of a node.
type NodeState string

// The states of a node. They have the names the membership gives them.
const (
	NodeAlive      NodeState = "alive"
	NodeSuspect    NodeState = "suspect"    // silent for now; may be back at once
	NodeRestarting NodeState = "restarting" // announced it: until NodeHealth.Until nothing moves
	NodeDead       NodeState = "dead"       // declared dead, or not heard of since this node started
	NodeLeft       NodeState = "left"       // said goodbye, or was removed
)

// NodeHealth is one member as this node's membership sees it.
type NodeHealth struct {
	Name  string // also its Node object's
	State NodeState
	Since time.Time // when State began, by this node's clock
	Until time.Time // the end of an announced restart; zero otherwise

	// Birth tells one run of the member's daemon from the next. What it counts
	// does not matter, only whether it is the same.
	Birth uint64

	// Unheard, of a dead member: this node's daemon has not heard of it since
	// it started itself. It gets time to start as well.
	Unheard bool

	// KubeletDown: the member is there and its kubelet is not. Its Lease is
	// not kept fresh, so that the node is given up after Config.NodeGrace.
	KubeletDown bool
}

// Verdict is what the leader does about a node.
type Verdict string

// The verdicts.
const (
	VerdictKeep    Verdict = "keep"    // healthy: Lease kept fresh, marks taken back
	VerdictDoubt   Verdict = "doubt"   // suspect: kept, its pods taken out of the endpoints
	VerdictWait    Verdict = "wait"    // restarting: kept as it is, given nothing new
	VerdictHold    Verdict = "hold"    // gone with too many others: pods stay its own, out of the endpoints
	VerdictExpect  Verdict = "expect"  // not heard of since this node started: as hold, for it gets time to start too
	VerdictEvict   Verdict = "evict"   // dead: Ready becomes Unknown, pods move
	VerdictRemove  Verdict = "remove"  // left: Node object, Lease and pods are deleted
	VerdictAbandon Verdict = "abandon" // its kubelet is down: the Lease is left to run out
)

// Report is what a term is doing about nodes, for people.
type Report struct {
	Term  uint64       `json:"term"`
	Since time.Time    `json:"since"`           // start of the term
	Held  []string     `json:"held,omitempty"`  // nodes the brake holds
	Until time.Time    `json:"until,omitzero"`  // when the brake gives up on the first of them
	Nodes []NodeReport `json:"nodes,omitempty"` // in order of name
}

// NodeReport is what a term does about one node.
type NodeReport struct {
	Name    string    `json:"name"`
	Verdict Verdict   `json:"verdict"`
	Since   time.Time `json:"since"` // since when it is treated like this
	// Unready counts its pods taken out of the endpoints, as last looked at.
	Unready int    `json:"unready,omitempty"`
	Error   string `json:"error,omitempty"` // the last thing tried that failed
}
