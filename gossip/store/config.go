package store

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// Config is what a [Store] needs to know. Use [DefaultConfig] and change what
// differs.
type Config struct {
	// Dir holds the store's files. It is made when it does not exist.
	Dir string
	// Node goes into every revision.
	Node crdt.NodeNumber
	// Now reads the wall clock.
	Now func() time.Time
	// Log receives what an operator should know.
	Log *slog.Logger
	// FS is the file system Dir is on.
	FS vfs.FS

	// MaxRequestBytes bounds the keys and values of one transaction.
	MaxRequestBytes int
	// QueueLength bounds the writes waiting for the committer. Callers beyond
	// it wait.
	QueueLength int
	// BatchBytes ends a commit batch once its changes reach it.
	BatchBytes int

	// HistoryEntries and HistoryBytes bound the changes kept for reads and
	// watches in the past, HistoryMemory the bytes of those that only memory
	// holds. Beyond any of them the oldest are compacted away.
	HistoryEntries int
	HistoryBytes   int64
	HistoryMemory  int64
	// EventBytes bounds the keys and values of Events, which only memory
	// holds. Beyond it the oldest are deleted.
	EventBytes int64
	// RecentBytes bounds the newest changes kept in memory for watchers and
	// reads.
	RecentBytes int64
	// WatchEvents and WatchBytes bound the changes waiting in memory for one
	// watcher. Beyond either it reads history from disk.
	WatchEvents int
	WatchBytes  int

	// CacheBytes is the block cache, MemTableBytes the size at which the log
	// moves from memory and its journal into a table.
	CacheBytes    int64
	MemTableBytes int

	// MinFreeBytes is what must be free on the disk for a write to be accepted.
	// BallastBytes is set aside in a file and given up when the disk fills
	// regardless.
	MinFreeBytes int64
	BallastBytes int64

	// RevisionReserve is how far ahead of use revisions are reserved on disk.
	RevisionReserve time.Duration

	// Schema tells how the lists of an object are merged; nil for none.
	Schema crdt.Schema
	// Hold, when set, is called after a local replicated write is durable and
	// visible, with the store's revision then; its caller is answered once
	// release has been called, which may happen at once, later or never: closing
	// the store answers the rest. Hold must not block.
	Hold func(rev int64, release func())
	// MaxDrift is how far ahead of Now a peer's stamp may be, or ahead of what the
	// store had when it was opened when Now is behind that. After a change from ahead
	// the stamps of this node are ahead, too, until Now has caught up.
	MaxDrift time.Duration
	// TombstoneKeep bounds how long deletes are remembered for peers that have
	// not seen them.
	TombstoneKeep time.Duration
	// Fingerprint tells this directory from a copy of it: when it differs from
	// the one at the last start, a new incarnation begins. Empty, it is made of
	// the machine's identity and the files' place on the disk.
	Fingerprint string
	// RunFile lies outside of Dir where a boot of the machine clears it, empty for
	// nowhere. It and the log get the same random number at each start and stop. When
	// they differ at a start, the disk may be what it was some time ago, and others have
	// changes that it has lost: the first change of this node's own is of a new
	// incarnation then, unless [Store.Trust] is called before.
	RunFile string
}

// DefaultConfig returns the configuration of a store in dir.
func DefaultConfig(dir string) Config {
	return Config{
		Dir:             dir,
		Now:             time.Now,
		Log:             slog.New(slog.DiscardHandler),
		FS:              vfs.Default,
		MaxRequestBytes: 1536 << 10,
		QueueLength:     1024,
		BatchBytes:      1 << 20,
		HistoryEntries:  50_000,
		HistoryBytes:    128 << 20,
		HistoryMemory:   16 << 20,
		EventBytes:      32 << 20,
		RecentBytes:     16 << 20,
		WatchEvents:     1000,
		WatchBytes:      1 << 20,
		CacheBytes:      4 << 20,
		MemTableBytes:   4 << 20,
		MinFreeBytes:    32 << 20,
		BallastBytes:    16 << 20,
		RevisionReserve: time.Hour,
		MaxDrift:        24 * time.Hour, // more than any mistake about time zones
		TombstoneKeep:   24 * time.Hour,
	}
}

// Validate reports the first thing wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("validate store config: no directory")
	case c.Now == nil || c.Log == nil || c.FS == nil:
		return errors.New("validate store config: no clock, logger or file system")
	case c.RevisionReserve < aheadReserve:
		return fmt.Errorf("validate store config: revision reserve %v is below %v", c.RevisionReserve, aheadReserve)
	case c.MaxDrift <= 0 || c.TombstoneKeep <= 0:
		return errors.New("validate store config: drift or keep of tombstones is not positive")
	case c.MinFreeBytes < 0 || c.BallastBytes < 0 || c.CacheBytes < 0:
		return errors.New("validate store config: a size is negative")
	}
	for name, n := range map[string]int64{
		"request bytes": int64(c.MaxRequestBytes), "queue length": int64(c.QueueLength),
		"batch bytes": int64(c.BatchBytes), "history entries": int64(c.HistoryEntries),
		"history bytes": c.HistoryBytes, "history memory": c.HistoryMemory, "event bytes": c.EventBytes, "recent bytes": c.RecentBytes,
		"watch events": int64(c.WatchEvents), "watch bytes": int64(c.WatchBytes),
		"memtable bytes": int64(c.MemTableBytes),
	} {
		if n <= 0 {
			return fmt.Errorf("validate store config: %s is %d", name, n)
		}
	}
	if c.MaxRequestBytes > crdt.MaxValueBytes {
		return fmt.Errorf("validate store config: request bytes %d is above %d", c.MaxRequestBytes, crdt.MaxValueBytes)
	}
	return nil
}
