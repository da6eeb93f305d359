package join

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

const membersPrefix = "/moot/members/"

// firstNumber is the node number of the member a cluster begins with.
const firstNumber crdt.NodeNumber = 1

// Registration is a machine that was made a member, alive or not. It lasts
// until the member leaves or is removed.
type Registration struct {
	Name    string          `json:"name"`
	Number  crdt.NodeNumber `json:"number"`
	Machine string          `json:"machine"` // hash of the data directory's secret
	Address netip.AddrPort  `json:"address"` // of the one port, as of the last start
	API     int             `json:"api,omitempty"`
	Version string          `json:"version"`
	Joined  time.Time       `json:"joined"`
	By      string          `json:"by,omitempty"` // the member that let it in
}

// Registry is the register of members. Its methods may be called from many
// goroutines and on many members; where two sides of a cut registered the same
// name or number, [Registry.Settle] says who gives way.
type Registry struct {
	store Store
	now   func() time.Time
}

// NewRegistry returns the register kept in s.
func NewRegistry(s Store, now func() time.Time) *Registry { return &Registry{store: s, now: now} }

// List returns the members in order of their names.
func (r *Registry) List(ctx context.Context) ([]Registration, error) {
	result, err := r.store.Range(ctx, below(membersPrefix))
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	var all []Registration
	for _, kv := range result.KVs {
		var reg Registration
		if err := json.Unmarshal(kv.Value, &reg); err != nil {
			return nil, fmt.Errorf("read member %s: %w", strings.TrimPrefix(string(kv.Key), membersPrefix), err)
		}
		all = append(all, reg)
	}
	return all, nil
}

// Self is a member's own registration, made anew at every start: [Settle] keeps
// what the register knows of it and says what changed.
type Self struct {
	Name    string
	Machine Secret // secret of the data directory
	Number  crdt.NodeNumber
	Address netip.AddrPort
	API     int
	Version string
}

// ErrNameTaken: the register holds another machine by this node's name.
var ErrNameTaken = errors.New("another machine has this node's name in the cluster")

// ErrRemoved: this node was a member and is not any more.
var ErrRemoved = errors.New("this node was removed from the cluster")

// Settle keeps this node's own registration up to date and returns it. It is
// called at the start, and again after members were merged in from the other
// side of a cut. Two things may have happened there. The number was given to an
// older member too: the younger, this node, takes another, and Number differs
// from self's. Or the name was: the older member keeps it, and the younger gets
// [ErrNameTaken]. A node that was removed gets [ErrRemoved]; entering is set by
// one that began the cluster or joined it in this start, whose registration may
// not have reached the replica yet.
func (r *Registry) Settle(ctx context.Context, self Self, entering bool) (Registration, error) {
	all, err := r.List(ctx)
	if err != nil {
		return Registration{}, err
	}
	machine := self.Machine.Hash()
	known := slices.ContainsFunc(all, func(m Registration) bool { return m.Name == self.Name })
	if !known && !entering && len(all) > 0 {
		return Registration{}, fmt.Errorf("register %s: %w; remove its data directory and join it again with a token", self.Name, ErrRemoved)
	}
	var settled Registration
	err = update(ctx, r.store, membersPrefix+self.Name, func(held []byte) (any, error) {
		settled = Registration{Name: self.Name, Number: self.Number, Machine: machine, Joined: r.now().UTC().Truncate(time.Second)}
		if held != nil {
			if err := json.Unmarshal(held, &settled); err != nil {
				return nil, err
			}
		}
		if settled.Machine != machine {
			return nil, fmt.Errorf("%w, at %s; join this one again by another --node-name, or run `moot remove %s` if that machine is gone", ErrNameTaken, settled.Address, self.Name)
		}
		if settled.Number == 0 {
			settled.Number = firstNumber
		}
		if givesWay(settled, all) {
			if settled.Number, err = freeNumber(self.Name, all); err != nil {
				return nil, err
			}
		}
		settled.Address, settled.API, settled.Version = self.Address, self.API, self.Version
		return settled, nil
	})
	if err != nil {
		return Registration{}, fmt.Errorf("register %s: %w", self.Name, err)
	}
	return settled, nil
}

// givesWay reports whether another member has the same number and is older.
func givesWay(m Registration, all []Registration) bool {
	return slices.ContainsFunc(all, func(o Registration) bool {
		return o.Name != m.Name && o.Number == m.Number && older(o, m)
	})
}

func older(a, b Registration) bool {
	return cmp.Or(a.Joined.Compare(b.Joined), strings.Compare(a.Name, b.Name)) < 0
}

// Remove takes a member off the register. It reports whether it was on it.
func (r *Registry) Remove(ctx context.Context, name string) (bool, error) {
	result, err := r.store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: []byte(membersPrefix + name)}}})
	if err != nil {
		return false, fmt.Errorf("remove member %s: %w", name, err)
	}
	return result.Results[0].Deleted > 0, nil
}

// admit registers a machine that asks to become a member, or says why not. A
// member that asks again, because its joining was cut short, keeps its number.
func (r *Registry) admit(ctx context.Context, req Request, live []Live, by string) (Registration, *Refusal, error) {
	all, err := r.List(ctx)
	if err != nil {
		return Registration{}, nil, err
	}
	machine := req.Machine.Hash()
	if refusal := conflict(req, machine, all, live); refusal != nil {
		return Registration{}, refusal, nil
	}
	var admitted Registration
	var refusal *Refusal
	err = update(ctx, r.store, membersPrefix+req.Name, func(held []byte) (any, error) {
		admitted, refusal = Registration{Joined: r.now().UTC().Truncate(time.Second), By: by}, nil
		if held != nil {
			if err := json.Unmarshal(held, &admitted); err != nil {
				return nil, err
			}
			if admitted.Machine != machine { // registered since we looked
				refusal = nameTaken(admitted)
				return nil, nil
			}
		}
		if admitted.Number == 0 {
			if admitted.Number, err = freeNumber(req.Name, all); err != nil {
				return nil, err
			}
		}
		admitted.Name, admitted.Machine, admitted.Address, admitted.Version = req.Name, machine, req.Address, req.Version
		return admitted, nil
	})
	if err != nil {
		return Registration{}, nil, fmt.Errorf("register %s: %w", req.Name, err)
	}
	return admitted, refusal, nil
}

// conflict says what of a request collides with the members there are.
func conflict(req Request, machine string, all []Registration, live []Live) *Refusal {
	for _, m := range live {
		if m.Name == req.Name && m.Address != req.Address {
			return refuse(ReasonName, "a living member at %s is named %s; give this machine another --node-name", m.Address, m.Name)
		}
		if m.Name != req.Name && m.Address == req.Address {
			return refuse(ReasonAddress, "the living member %s has the address %s; give this machine its own with --node-ip", m.Name, m.Address)
		}
	}
	for _, m := range all {
		if m.Name == req.Name && m.Machine != machine {
			return nameTaken(m)
		}
	}
	return nil
}

func nameTaken(m Registration) *Refusal {
	return refuse(ReasonName, "another machine, at %s, is registered by the name %s; give this one another --node-name, "+
		"or run `moot remove %s` on a member if that machine is gone or its data directory was", m.Address, m.Name, m.Name)
}

// freeNumber chooses a node number that no member has, by the hash of the name:
// two sides of a cut that let in different machines seldom choose the same.
func freeNumber(name string, all []Registration) (crdt.NodeNumber, error) {
	const choices = math.MaxUint16 - uint32(firstNumber) // 0 is none, firstNumber the first member's
	taken := map[crdt.NodeNumber]bool{}
	for _, m := range all {
		taken[m.Number] = true
	}
	hash := fnv.New32a()
	hash.Write([]byte(name))
	start := hash.Sum32() % choices
	for i := range choices {
		number := firstNumber + 1 + crdt.NodeNumber((start+i)%choices) //nolint:gosec // below 1<<16
		if !taken[number] {
			return number, nil
		}
	}
	return 0, errors.New("choose node number: all are taken; remove members that are gone")
}
