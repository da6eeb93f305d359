package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mootkube/moot/gossip/crdt"
)

// membersPrefix is where the register of members is kept in the store, one
// JSON object a member. It is written where members join; here it is read, to
// know whom to seek, and cleared of members that go.
const membersPrefix = "/moot/members/"

// registration is what the register says of a member.
type registration struct {
	Number  crdt.NodeNumber `json:"number"`
	Address netip.AddrPort  `json:"address"`
	Version string          `json:"version"`
}

// readRegister returns the members in the register. Entries that cannot be read
// are left out and reported together.
func readRegister(ctx context.Context, r Replica) (map[string]registration, error) {
	values, err := r.List(ctx, membersPrefix)
	if err != nil {
		return nil, fmt.Errorf("read register of members: %w", err)
	}
	out := make(map[string]registration, len(values))
	var bad []error
	for name, value := range values {
		var reg registration
		if err := json.Unmarshal(value, &reg); err != nil {
			bad = append(bad, fmt.Errorf("read member %s: %w", name, err))
			continue
		}
		out[name] = reg
	}
	return out, errors.Join(bad...)
}
