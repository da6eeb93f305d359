package join

import "fmt"

// Reason is why a machine was refused.
type Reason string

// The reasons of a [Refusal].
const (
	ReasonProtocol Reason = "protocol" // the handshake's own version, or a broken request
	ReasonToken    Reason = "token"    // unknown, wrong or revoked
	ReasonExpired  Reason = "expired"  // the token ran out
	ReasonBusy     Reason = "busy"     // too many attempts
	ReasonClock    Reason = "clock"    // clocks too far apart
	ReasonName     Reason = "name"     // in use, or not a node name
	ReasonAddress  Reason = "address"  // in use, or not reachable by members
	ReasonCluster  Reason = "cluster"  // the machine belongs to another one
	ReasonVersion  Reason = "version"  // other major version
	ReasonInternal Reason = "internal" // the member could not; try again, or another
)

// Refusal is the answer to a machine that does not become a member. It is an
// error on the machine's side; its text is for people.
type Refusal struct {
	Reason Reason `json:"reason"`
	Text   string `json:"text"`
}

// Error says what is wrong and what to do.
func (r *Refusal) Error() string { return r.Text }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}
}
