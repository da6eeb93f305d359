package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/node/net/proxy"
	"github.com/mootkube/moot/node/pki/rotation"
	"github.com/mootkube/moot/sched"
)

// Status is what a running node says of itself.
type Status struct {
	Node     string        `json:"node"`
	Address  string        `json:"address"`
	Versions Versions      `json:"versions"`
	Started  time.Time     `json:"started"`
	Ready    bool          `json:"ready"`              // the node has become ready since this start; see its Node object for now
	Reason   string        `json:"reason,omitempty"`   // why not, when it is not
	Degraded []string      `json:"degraded,omitempty"` // what the node does without
	Parts    []PartStatus  `json:"parts"`
	Store    StoreStatus   `json:"store"`
	Services proxy.Serving `json:"services"` // what serves Services here

	// What this node knows of the cluster: leader, digest, members and more.
	gossip.Status
	Conflicts int              `json:"conflicts"`          // listed by moot conflicts
	Rotation  *rotation.Status `json:"rotation,omitempty"` // of the members' keys, while one is under way

	// Leading is what this node does as the leader, nil when another leads.
	Leading *sched.Report `json:"leading,omitempty"`
}

// MemberStatus is a member and the replication between it and this node.
type MemberStatus = gossip.MemberStatus

// PartStatus is one component of the daemon.
type PartStatus struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"` // from its start until it was ready
}

// StoreStatus is the state of the local replica.
type StoreStatus struct {
	Revision          int64 `json:"revision"`
	CompactedRevision int64 `json:"compactedRevision"`
	Bytes             int64 `json:"bytes"` // on disk
}

// board is the status as the parts of the daemon write it.
type board struct {
	mu      sync.Mutex
	status  Status
	measure func(*Status) // fills in what changes by itself
	started bool          // all parts have become ready, or the node goes on without them
}

func (b *board) measureBy(measure func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.measure = measure
}

// without says why the node does without one of its parts; it has it again when
// why is empty.
func (b *board) without(part, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Degraded = slices.DeleteFunc(b.status.Degraded, func(d string) bool { return strings.HasPrefix(d, part+": ") })
	if why != "" {
		b.status.Degraded = append(b.status.Degraded, part+": "+strings.ReplaceAll(why, "\n", "; "))
	}
	b.judgeLocked()
}

// start says that the start is over, and returns what the node does without.
func (b *board) start() (degraded []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.started = true
	b.judgeLocked()
	return slices.Clone(b.status.Degraded)
}

func (b *board) judgeLocked() {
	if b.started {
		b.status.Ready, b.status.Reason = len(b.status.Degraded) == 0, strings.Join(b.status.Degraded, "; ")
	}
}

func (b *board) update(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.status)
}

func (b *board) read() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Parts = slices.Clone(s.Parts)
	s.Degraded = slices.Clone(s.Degraded)
	if b.measure != nil {
		b.measure(&s)
	}
	return s
}

// serveStatus answers GET /status, the routes of the control, and Go's profiles
// below /debug/pprof/, on a unix socket only root can open, until ctx ends.
func serveStatus(ctx context.Context, socket string, read func() Status, control *control, ready func()) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale status socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for status: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("protect status socket: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s := read()
		control.measure(r.Context(), &s)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s) // the client hung up: nobody to tell
	})
	control.handle(mux)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	ready()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// ErrNotRunning says that no daemon answers on the status socket.
var ErrNotRunning = errors.New("no moot is running on this machine; start one with: sudo moot up")

// FetchStatus asks the daemon behind socket how it is.
func FetchStatus(ctx context.Context, socket string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var s Status
	if err := (Client{Socket: socket}).ask(ctx, http.MethodGet, "/status", nil, &s); err != nil {
		return Status{}, err
	}
	return s, nil
}
