package backup

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/mootkube/moot/node/join"
)

const (
	magic = "moot backup 1\n"

	frameHeader   = 'H'
	frameMaterial = 'M'
	frameKey      = 'K'
	frameEnd      = 'E'

	maxFrameBytes = 64 << 20
	maxKeyBytes   = 64 << 10
)

// Header says what a backup is of.
type Header struct {
	Cluster  string        `json:"cluster"` // the cluster's id
	Node     string        `json:"node"`    // the member that wrote it
	Version  string        `json:"version"` // Moot's
	Created  time.Time     `json:"created"`
	Revision int64         `json:"revision"` // of that member's history: the view
	Settings join.Settings `json:"settings"`
}

// LogValue is short.
func (h Header) LogValue() slog.Value {
	return slog.GroupValue(slog.String("cluster", h.Cluster), slog.String("node", h.Node), slog.Time("created", h.Created))
}

// trailer is the last frame.
type trailer struct {
	Keys   int64  `json:"keys"`
	SHA256 string `json:"sha256"`
}

// Summary is what [Verify] found in a whole backup.
type Summary struct {
	Header Header
	Keys   int64
	Bytes  int64 // of keys and values
}

// Errors a caller branches on.
var (
	// ErrNotABackup: the file begins like none.
	ErrNotABackup = errors.New("not a backup made by `moot backup`")
	// ErrDamaged: the file is not as it was written, or was not written to its end.
	ErrDamaged = errors.New("the backup is damaged or was cut short")
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// unreadable is damaged for what reading returned. It hides [io.EOF], which is
// the word for the end of a whole backup.
func unreadable(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it ends early")
	}
	return damaged("%w", err)
}
