package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	guardTries  = 3                // starts that may die before the next is refused
	guardWindow = 10 * time.Minute // how long a start that died counts
	guardGrace  = 90 * time.Second // a kubelet alive this long is past its start
)

// CrashLoopError is what [Guard.Begin] returns when earlier starts of the
// kubelet took the daemon down with them.
type CrashLoopError struct {
	Deaths int       // starts that died in a row
	Reason string    // the last error the kubelet logged, "" if it logged none
	Until  time.Time // when a start is allowed again
	File   string    // remove it to allow one now
}

func (e *CrashLoopError) Error() string {
	reason := e.Reason
	if reason == "" {
		reason = "it logged no error"
	}
	return fmt.Sprintf("kubelet not started: its last %d starts ended the daemon (%s); next try after %s, or remove %s and restart",
		e.Deaths, reason, e.Until.Format(time.DateTime), e.File)
}

// Guard remembers, in one file, the starts of the kubelet that ended neither in
// readiness nor in an orderly stop. Its methods may be called from any
// goroutine.
type Guard struct {
	file        string
	fingerprint string
	now         func() time.Time

	mu      sync.Mutex
	pending bool // a start is marked in the file and not yet settled
}

// guardState is the file's content.
type guardState struct {
	Fingerprint string    `json:"fingerprint"` // settings the starts were made with
	Starts      []aStart  `json:"starts"`      // oldest first, none of them settled
	Reason      string    `json:"reason,omitempty"`
	ReasonAt    time.Time `json:"reasonAt,omitzero"`
}

type aStart struct {
	At time.Time `json:"at"`
}

// NewGuard returns a guard that keeps its marks in file; with an empty file it
// guards nothing. Starts made with another fingerprint do not count: whoever changes the settings gets a fresh
// try.
func NewGuard(file, fingerprint string) *Guard {
	return &Guard{file: file, fingerprint: fingerprint, now: time.Now}
}

// Begin marks a start, durably, before anything that may end the process. It
// returns a [*CrashLoopError] when the starts before it died.
func (g *Guard) Begin() error {
	if g.file == "" {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	state, err := g.read()
	if err != nil {
		return err
	}
	now := g.now()
	if refusal := decideStart(state, g.fingerprint, now); refusal != nil {
		refusal.File = g.file
		return refusal
	}
	if state.Fingerprint != g.fingerprint {
		state = guardState{Fingerprint: g.fingerprint}
	}
	state.Starts = append(recentStarts(state.Starts, now), aStart{At: now})
	if err := g.write(state); err != nil {
		return err
	}
	g.pending = true
	return nil
}

// Settle says that the start is over and was no crash: the kubelet is ready, or
// it was stopped in order. Further calls do nothing.
func (g *Guard) Settle() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.pending {
		return nil
	}
	g.pending = false
	if err := os.Remove(g.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("settle kubelet start: %w", err)
	}
	return nil
}

// Note records an error that the kubelet logged while it starts. The process
// may end right after, so the record is on disk when Note returns.
func (g *Guard) Note(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.pending {
		return
	}
	state, err := g.read()
	if err != nil {
		return // the marks of the starts matter more than the reason
	}
	state.Reason, state.ReasonAt = reason, g.now()
	_ = g.write(state)
}

// decideStart tells whether one more start is allowed.
func decideStart(state guardState, fingerprint string, now time.Time) *CrashLoopError {
	if state.Fingerprint != fingerprint {
		return nil
	}
	recent := recentStarts(state.Starts, now)
	if len(recent) < guardTries {
		return nil
	}
	refusal := &CrashLoopError{Deaths: len(recent), Until: recent[len(recent)-guardTries].At.Add(guardWindow)}
	if !state.ReasonAt.Before(recent[0].At) {
		refusal.Reason = state.Reason
	}
	return refusal
}

// recentStarts drops starts that no longer count, and those from the future: a
// clock that was set back must not refuse the kubelet for ever.
func recentStarts(starts []aStart, now time.Time) []aStart {
	return slices.DeleteFunc(slices.Clone(starts), func(s aStart) bool {
		return s.At.After(now) || now.Sub(s.At) >= guardWindow
	})
}

// read returns the file's state; a missing or unreadable one counts as empty.
func (g *Guard) read() (guardState, error) {
	raw, err := os.ReadFile(g.file)
	if errors.Is(err, fs.ErrNotExist) {
		return guardState{}, nil
	}
	if err != nil {
		return guardState{}, fmt.Errorf("read kubelet start marks: %w", err)
	}
	var state guardState
	if json.Unmarshal(raw, &state) != nil {
		return guardState{}, nil
	}
	return state, nil
}

func (g *Guard) write(state guardState) error {
	raw, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode kubelet start marks: %w", err)
	}
	if err := writeDurably(g.file, raw); err != nil {
		return fmt.Errorf("write kubelet start marks: %w", err)
	}
	return nil
}

func writeDurably(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".kubelet-start-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
