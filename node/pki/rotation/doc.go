// Package rotation walks a cluster's members through the replacement of what
// they recognise each other by, without any of them ever refusing another.
//
// # Data flow
//
// A rotation is one replicated key, /moot/keys/rotation. [Runner.Start] plans
// it ([pki.PlanRotation]) and writes its first stage. Every member's
// [Runner.Run] sees the key, takes the stage's keys into its directory, puts
// them to use and writes /moot/keys/taken/NAME. Once every registered member
// has taken a stage, the leader writes the next: trust the new authority and
// gossip key, use them, drop the old. A member that is away holds the rotation
// up at its stage, not the cluster; it goes on when the member is back or was
// removed.
//
// The keys in the record are encrypted with one derived from the Kubernetes
// authority's, which every member holds; they are taken out once all is done.
//
// # Goroutines
//
// [Runner.Run] works in the caller's.
//
// # What it refuses
//
// To start a rotation while another is under way. It does not protect against
// one who has the old keys: such a one is a member and is given the new ones.
package rotation
