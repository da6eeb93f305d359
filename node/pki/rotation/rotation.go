package rotation

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/mootkube/moot/gossip/store"
)

// Stage is how far a rotation is.
type Stage string

// The stages of a rotation, in order.
const (
	StageTrust Stage = "trust" // the new keys are accepted, the old ones used
	StageIssue Stage = "issue" // the new keys are used, the old ones accepted
	StageDrop  Stage = "drop"  // the new keys alone
	StageDone  Stage = "done"
)

// Status is how far the last rotation is, for people.
type Status struct {
	ID      string    `json:"id,omitempty"` // empty: there was none
	Stage   Stage     `json:"stage,omitempty"`
	Started time.Time `json:"started,omitzero"`
	By      string    `json:"by,omitempty"`
	Waiting []string  `json:"waiting,omitempty"` // members that have not taken the stage
}

// ErrUnderWay: a rotation has not ended yet.
var ErrUnderWay = errors.New("a rotation is under way")

// Store is the replicated store, as far as a rotation needs it.
type Store interface {
	Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error)
	Txn(ctx context.Context, t store.Txn) (store.TxnResult, error)
}

// Config is what a [Runner] needs to know. All fields are required.
type Config struct {
	Name    string // this member's
	Machine string // this member's, as the register knows it
	Dir     string // of the keys, as for pki.Ensure
	Store   Store
	// Members returns the machines of all registered members by the members'
	// names, this one included.
	Members func(ctx context.Context) (map[string]string, error)
	// Leads reports whether this member leads: the leader moves a rotation on.
	Leads func() bool
	// Taken is called after other keys were written to Dir, to put them to use.
	Taken func() error
	Now   func() time.Time
	Log   *slog.Logger
	Every time.Duration // between looks at the record, 2 s for instance
}
