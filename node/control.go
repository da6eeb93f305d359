package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki/rotation"
)

// Cluster is what the control socket asks of the running daemon beside the
// store: what touches other members.
type Cluster interface {
	// Leave hands over and takes this node out of the cluster: the membership,
	// the register and its Node object. say is told each step. The daemon ends
	// after it, and does not start again from its data directory.
	Leave(ctx context.Context, say func(string)) error
	// Remove takes a dead member out likewise. It refuses a living one.
	Remove(ctx context.Context, name string, say func(string)) error
}

// ControlStore is the replica, as far as the control socket needs it.
// [store.Store] is one.
type ControlStore interface {
	Range(ctx context.Context, req store.RangeRequest) (store.RangeResult, error)
	Txn(ctx context.Context, t store.Txn) (store.TxnResult, error)
	Revision() int64
	Conflicts(ctx context.Context) ([]crdt.Conflict, error)
}

// Controls are the parts of a running daemon that the control socket works on.
type Controls struct {
	Cluster  Cluster
	Store    ControlStore
	Tokens   *join.Tokens
	Rotation *rotation.Runner
	Pin      func() (string, error) // of the cluster, as tokens carry it: pki.PeerIdentity.Pin
	Address  netip.AddrPort         // where machines are to join

	ID       string        // of the cluster
	Node     string        // this node's name
	PKIDir   string        // the cluster's keys, for a backup
	Settings join.Settings // likewise
	SpoolDir string        // where a backup to be restored waits while it is checked
}

// control answers on the daemon's socket what changes the cluster or sends
// much. It serves before the store does, and says so until open was called.
type control struct {
	mu sync.Mutex
	on *Controls
}

// open puts the controls into service; nil takes them out again.
func (c *control) open(on *Controls) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = on
}

func (c *control) controls() (*Controls, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on == nil {
		return nil, errStarting
	}
	return c.on, nil
}

var (
	errStarting = errors.New("the daemon is starting or stopping; try again when `moot status` says it is ready")
	errNotHere  = errors.New("this daemon cannot do that: it runs without a cluster")
)

// handle adds the routes to the daemon's socket.
func (c *control) handle(mux *http.ServeMux) {
	mux.HandleFunc("GET /tokens", answers(c, listTokens))
	mux.HandleFunc("POST /tokens", answers(c, createToken))
	mux.HandleFunc("DELETE /tokens/{id}", answers(c, func(r *http.Request, on *Controls) (any, error) {
		return nil, on.Tokens.Revoke(r.Context(), r.PathValue("id"))
	}))
	mux.HandleFunc("GET /conflicts", answers(c, listConflicts))
	mux.HandleFunc("GET /keys/rotation", answers(c, func(r *http.Request, on *Controls) (any, error) { return on.Rotation.Status(r.Context()) }))
	mux.HandleFunc("POST /keys/rotation", answers(c, func(r *http.Request, on *Controls) (any, error) { return on.Rotation.Start(r.Context()) }))
	mux.HandleFunc("POST /leave", tells(c, func(r *http.Request, on *Controls, say func(string)) error {
		if on.Cluster == nil {
			return errNotHere
		}
		return on.Cluster.Leave(r.Context(), say)
	}))
	mux.HandleFunc("DELETE /members/{name}", tells(c, func(r *http.Request, on *Controls, say func(string)) error {
		if on.Cluster == nil {
			return errNotHere
		}
		return on.Cluster.Remove(r.Context(), r.PathValue("name"), say)
	}))
	mux.HandleFunc("GET /backup", c.sendBackup)
	mux.HandleFunc("POST /restore", tells(c, receiveBackup))
}

// measure adds to the status what is kept in the store.
func (c *control) measure(ctx context.Context, s *Status) {
	on, err := c.controls()
	if err != nil {
		return
	}
	if found, err := on.Store.Conflicts(ctx); err == nil {
		for i := range found {
			if !found[i].Observed() {
				s.Conflicts++
			}
		}
	}
	if r, err := on.Rotation.Status(ctx); err == nil && r.ID != "" && r.Stage != rotation.StageDone {
		s.Rotation = &r
	}
}

// problem is how an error travels over the socket.
type problem struct {
	Error string `json:"error"`
}

// answers makes a handler of a function that returns something to be encoded.
func answers(c *control, do func(*http.Request, *Controls) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		on, err := c.controls()
		var answer any
		if err == nil {
			answer, err = do(r, on)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(statusOf(err))
			answer = problem{err.Error()}
		}
		_ = json.NewEncoder(w).Encode(answer) // the client hung up: nobody to tell
	}
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, errStarting):
		return http.StatusServiceUnavailable
	case errors.Is(err, join.ErrNoToken):
		return http.StatusNotFound
	case errors.Is(err, rotation.ErrUnderWay):
		return http.StatusConflict
	default:
		return http.StatusUnprocessableEntity
	}
}

// step is one line of a request that takes a while.
type step struct {
	Say   string `json:"say,omitempty"`
	Error string `json:"error,omitempty"`
	Done  bool   `json:"done,omitempty"`
}

// tells makes a handler of a function that says what it is doing: a line of
// JSON for each step, the last with an error or done.
func tells(c *control, do func(*http.Request, *Controls, func(string)) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		flush := http.NewResponseController(w)
		_ = flush.EnableFullDuplex() // HTTP/1: the request is read while steps are told
		send := func(s step) {
			_ = json.NewEncoder(w).Encode(s) // the client hung up: the work goes on or ends by its context
			_ = flush.Flush()
		}
		on, err := c.controls()
		if err == nil {
			err = do(r, on, func(text string) { send(step{Say: text}) })
		}
		if err != nil {
			send(step{Error: err.Error()})
			return
		}
		send(step{Done: true})
	}
}

// NewToken is what a request for a token says.
type NewToken struct {
	Description string        `json:"description,omitempty"`
	TTL         time.Duration `json:"ttlNs"` // 0: for ever
}

// CreatedToken is a token just made, the only time that its secret is shown.
type CreatedToken struct {
	join.TokenInfo
	Token   string `json:"token"`
	Address string `json:"address"` // where machines are to join
}

// ListedToken is a token and whether it is still good for anything.
type ListedToken struct {
	join.TokenInfo
	Rotated bool `json:"rotated,omitempty"` // the cluster's keys were rotated since: no machine recognises it by this token
}

func listTokens(r *http.Request, on *Controls) (any, error) {
	all, err := on.Tokens.List(r.Context())
	if err != nil {
		return nil, err
	}
	pin, err := on.Pin()
	if err != nil {
		return nil, err
	}
	list := make([]ListedToken, 0, len(all))
	for _, t := range all {
		list = append(list, ListedToken{TokenInfo: t, Rotated: t.Pin != pin})
	}
	return list, nil
}

func createToken(r *http.Request, on *Controls) (any, error) {
	var want NewToken
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10)).Decode(&want); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	pin, err := on.Pin()
	if err != nil {
		return nil, err
	}
	token, info, err := on.Tokens.Create(r.Context(), pin, want.TTL, want.Description)
	if err != nil {
		return nil, err
	}
	return CreatedToken{TokenInfo: info, Token: token.Text(), Address: on.Address.String()}, nil
}

// Conflict is what a merge of concurrent changes did not keep, for people.
type Conflict struct {
	Key    string          `json:"key"`
	UID    string          `json:"uid,omitempty"` // of the object that lost
	Path   string          `json:"path,omitempty"`
	Rule   string          `json:"rule"` // see the rules of gossip/crdt
	Lost   json.RawMessage `json:"lost,omitempty"`
	Kept   json.RawMessage `json:"kept,omitempty"`
	LostBy string          `json:"lostBy"` // the change, as origin.sequence
	KeptBy string          `json:"keptBy"`
	LostAt time.Time       `json:"lostAt"` // by the clock of the node that made it
	KeptAt time.Time       `json:"keptAt"`
	// Observed says that controllers write what was lost anew by themselves.
	Observed bool `json:"observed,omitempty"`
}

func listConflicts(r *http.Request, on *Controls) (any, error) {
	found, err := on.Store.Conflicts(r.Context())
	if err != nil {
		return nil, fmt.Errorf("list conflicts: %w", err)
	}
	list := make([]Conflict, 0, len(found))
	for _, c := range found {
		list = append(list, Conflict{
			Key: c.Key, UID: c.UID, Path: c.Path, Rule: c.Rule, Lost: c.Lost, Kept: c.Kept,
			LostBy: c.LostBy.String(), KeptBy: c.KeptBy.String(),
			LostAt: c.LostAt.Time().UTC(), KeptAt: c.KeptAt.Time().UTC(), Observed: c.Observed(),
		})
	}
	return list, nil
}
