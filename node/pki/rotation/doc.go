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
// # Machines that join meanwhile
//
// A machine gets the keys that the member has which lets it in, and that member
// may be a stage behind. It is a member before it gets them, and is waited for as
// one, also before its first start: changes reach the leader in the order in which
// they were made, so with a member's word that it has taken a stage come all
// machines that it gave the keys of the stage before. This needs that the words
// are read before the register, that a word counts for the machine that gave it
// and not for the next one by its name, and that no member ever goes back to an
// earlier stage, whatever its replica says. Then no member is ever two stages
// behind another.
//
// # Keys in the record
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
