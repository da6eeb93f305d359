package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mootkube/moot/gossip/crdt"
)

// Keys of the log. Numbers are big-endian so that they sort.
const (
	logPrefix    = 'l' // revision → record
	leasePrefix  = 'e' // lease → granted seconds
	asidePrefix  = 'a' // number → record that was set aside by a wipe
	holderPrefix = 'h' // key of a Lease → record of its last change but for renewals
	claimPrefix  = 'v' // origin → sequence up to which its changes are included
)

var (
	formatKey  = []byte("mformat")  // layout of the log
	originKey  = []byte("morigin")  // incarnation after the one in the file
	runKey     = []byte("mrun")     // what the file of this run has, see Config.RunFile
	ceilingKey = []byte("mceiling") // what is reserved
	floorKey   = []byte("mfloor")   // revision compacted to
	tallyKey   = []byte("mtally")   // what the log must hold
	pastKey    = []byte("mpast")    // vector of what history tells of no more
	forgotKey  = []byte("mforgot")  // vector of the deletes that are forgotten
	owedKey    = []byte("mowed")    // what was wiped and must come back
)

// formatVersion is the layout this code writes.
const formatVersion = 2

func numberKey(prefix byte, n int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, uint64(n))
}

func encodeCeiling(c ceiling) []byte {
	b := protowire.AppendFixed64(make([]byte, 0, 16), uint64(c.rev))
	return protowire.AppendFixed64(b, c.seq)
}

func decodeCeiling(b []byte) (ceiling, error) {
	if len(b) != 16 {
		return ceiling{}, fmt.Errorf("decode ceiling: %d bytes, want 16", len(b))
	}
	return ceiling{
		rev: crdt.Revision(binary.LittleEndian.Uint64(b)),
		seq: binary.LittleEndian.Uint64(b[8:]),
	}, nil
}

func encodeNumber(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func decodeNumber(b []byte) (int64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("decode number: %d bytes, want 8", len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// getBytes returns a copy of what key holds, nil when it is absent.
func getBytes(db *pebble.DB, key []byte) ([]byte, error) {
	v, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, len(v)), v...)
	return b, closer.Close()
}

// logOptions tunes Pebble for a small store that must be silent when idle:
// little memory, one compaction at a time, no compaction that reads trigger.
func logOptions(cfg Config, cache *pebble.Cache, log *pebbleLog) *pebble.Options {
	opts := &pebble.Options{
		FS:                          cfg.FS,
		Cache:                       cache,
		MemTableSize:                uint64(cfg.MemTableBytes),
		MemTableStopWritesThreshold: 3,
		MaxOpenFiles:                200,
		L0CompactionThreshold:       8,
		L0StopWritesThreshold:       96,
		LBaseMaxBytes:               512 << 20, // an append-only log gains nothing from being rewritten
		FormatMajorVersion:          pebble.FormatNewest,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		Logger:                      log,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { log.Errorf("%v", err) },
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				log.Errorf("damaged file %s: %v", info.Path, info.Details)
			},
		},
	}
	opts.Experimental.ReadSamplingMultiplier = -1
	for i := range opts.Levels {
		opts.Levels[i].BlockSize = 8 << 10
		opts.Levels[i].IndexBlockSize = 64 << 10
	}
	opts.EnsureDefaults()
	return opts
}

// pebbleLog passes Pebble's messages on. A fatal one means that the database
// can take no more writes; the store fails then, it does not end the process.
type pebbleLog struct {
	log  *slog.Logger
	fail func(error)
}

func (l *pebbleLog) Infof(string, ...any) {}

func (l *pebbleLog) Errorf(format string, args ...any) {
	l.log.Warn("log reports an error", "err", oneLine(fmt.Sprintf(format, args...)))
}

// Fatalf never returns, as its callers count on: the goroutine stays here, with
// whatever it holds, until the process ends.
func (l *pebbleLog) Fatalf(format string, args ...any) {
	l.fail(fmt.Errorf("write log: %s", oneLine(fmt.Sprintf(format, args...))))
	select {}
}

func oneLine(s string) string {
	s = strings.ReplaceAll(s, "<corruption detail carrier>", "") // noise of Pebble's
	return strings.Join(strings.Fields(s), " ")
}
