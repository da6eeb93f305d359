package crdt

import "encoding/json"

// Rules by which a conflict was decided, as they stand in [Conflict.Rule].
const (
	RuleNewest  = "newest"  // both sides changed the field: the newer write stays
	RuleWhole   = "whole"   // the object, list or map around the field was replaced or removed on the other side
	RuleOldest  = "oldest"  // both sides created the object: the older one stays
	RuleDeleted = "deleted" // the object was deleted on the other side
)

// Conflict says what one join of concurrent changes did not keep. Its JSON
// form is the same on every replica that finds it.
type Conflict struct {
	Key    string          `json:"key"`
	UID    string          `json:"uid,omitempty"` // of the object that lost
	Path   string          `json:"path,omitempty"`
	Rule   string          `json:"rule"`
	Lost   json.RawMessage `json:"lost,omitempty"` // absent: a removal lost
	Kept   json.RawMessage `json:"kept,omitempty"` // absent: a removal was kept
	LostBy Dot             `json:"lostBy,omitzero"`
	KeptBy Dot             `json:"keptBy,omitzero"`
	LostAt Stamp           `json:"lostAt,omitempty"`
	KeptAt Stamp           `json:"keptAt,omitempty"`
}

// MarshalText writes d as origin.seq.
func (d Dot) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
