package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Damage to a file can cut the log short without a trace in the log itself.
// Three things give it away. Every batch carries the [tally] of the log, so
// that a table that went missing is noticed. A mark beside the log remembers
// how far it reached, so that a missing end is noticed. And no file is deleted
// before the log has been read and found whole.

// tally is what the log holds: it is part of every batch.
type tally struct {
	rev     int64 // the newest change that was put in
	records int64 // changes put in and not removed again
}

func encodeTally(t tally) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(t.rev))
	return binary.BigEndian.AppendUint64(b, uint64(t.records))
}

func decodeTally(b []byte) (tally, error) {
	if len(b) != 16 {
		return tally{}, fmt.Errorf("decode tally: %d bytes, want 16", len(b))
	}
	return tally{
		rev:     int64(binary.BigEndian.Uint64(b)),
		records: int64(binary.BigEndian.Uint64(b[8:])),
	}, nil
}

// endMark is a small file that says up to which revision the log is known to be
// on disk. It is written after the log and never synced: what it says may be
// old, but it is never ahead of what was synced.
type endMark struct {
	file vfs.File
	buf  [markBytes]byte
}

const markBytes = 12 // revision, checksum

func markPath(cfg Config) string { return cfg.FS.PathJoin(cfg.Dir, "MARK") }

// openMark opens the mark and returns the revision it holds, 0 for none.
func openMark(cfg Config) (m *endMark, rev int64, err error) {
	path := markPath(cfg)
	_, err = cfg.FS.Stat(path)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return nil, 0, fmt.Errorf("open mark: %w", err)
	}
	f, err := cfg.FS.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, 0, fmt.Errorf("open mark: %w", err)
	}
	m = &endMark{file: f}
	if missing {
		err := errors.Join(m.write(0), f.Sync(), syncDir(cfg.FS, cfg.Dir))
		return m, 0, err
	}
	var b [markBytes]byte
	switch _, err := f.ReadAt(b[:], 0); {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, 0, errors.Join(fmt.Errorf("read mark: %w", err), f.Close())
	case binary.BigEndian.Uint32(b[8:]) != crc32.ChecksumIEEE(b[:8]):
		cfg.Log.Warn("mark is damaged, the end of the log goes unchecked", "file", path)
		return m, 0, nil
	}
	return m, int64(binary.BigEndian.Uint64(b[:])), nil
}

func (m *endMark) write(rev int64) error {
	b := binary.BigEndian.AppendUint64(m.buf[:0], uint64(rev))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	if _, err := m.file.WriteAt(b, 0); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	return nil
}

// checkWhole compares what was read from the log with what must be there.
func (l *loader) checkWhole(cfg Config, db *pebble.DB, marked int64) (tally, error) {
	b, err := getBytes(db, tallyKey)
	if err != nil {
		return tally{}, err
	}
	var want tally
	if b != nil {
		if want, err = decodeTally(b); err != nil {
			return tally{}, err
		}
	}
	if want.records != l.records {
		return tally{}, fmt.Errorf("it holds %d changes and should hold %d", l.records, want.records)
	}
	if want.rev < marked {
		return tally{}, fmt.Errorf("it ends at revision %d but reached %d, so acknowledged changes are missing (removing %s accepts the loss)",
			want.rev, marked, markPath(cfg))
	}
	return want, nil
}

// keeper is a file system that keeps the tables, journals and manifests that
// Pebble deletes until it is told that the log is whole. Their names carry
// numbers that are never used again.
type keeper struct {
	vfs.FS

	mu      sync.Mutex
	trusted bool
	kept    []string
}

// Unwrap returns the file system beneath, as vfs.Root asks for it.
func (k *keeper) Unwrap() vfs.FS { return k.FS }

// Create creates a file, one that Pebble fills block by block to be written in
// larger pieces.
func (k *keeper) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := k.FS.Create(name, c)
	base := k.PathBase(name)
	if err != nil || !strings.HasSuffix(base, ".sst") && !strings.HasPrefix(base, bulkName) {
		return f, err
	}
	return &pieceFile{File: f, piece: make([]byte, 0, pieceBytes)}, nil
}

const pieceBytes = 64 << 10

// pieceFile is a file that is written from its beginning to its end, in pieces:
// a write for each block of 8 KiB takes more system calls than all else that
// writes do.
type pieceFile struct {
	vfs.File
	piece []byte
}

func (f *pieceFile) Write(b []byte) (int, error) {
	if len(f.piece)+len(b) > pieceBytes {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) > pieceBytes {
		return f.File.Write(b)
	}
	f.piece = append(f.piece, b...)
	return len(b), nil
}

func (f *pieceFile) flush() error {
	if len(f.piece) == 0 {
		return nil
	}
	_, err := f.File.Write(f.piece)
	f.piece = f.piece[:0]
	return err
}

func (f *pieceFile) Sync() error { return errors.Join(f.flush(), f.File.Sync()) }

func (f *pieceFile) SyncData() error { return errors.Join(f.flush(), f.File.SyncData()) }

func (f *pieceFile) SyncTo(length int64) (bool, error) {
	if err := f.flush(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

func (f *pieceFile) Close() error { return errors.Join(f.flush(), f.File.Close()) }

// Remove removes a file, or remembers to.
func (k *keeper) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	base := k.PathBase(name)
	holds := strings.HasSuffix(base, ".sst") || strings.HasSuffix(base, ".log") || strings.HasPrefix(base, "MANIFEST-")
	if holds && !k.trusted {
		k.kept = append(k.kept, name)
		return nil
	}
	return k.FS.Remove(name)
}

// trust removes what was kept.
func (k *keeper) trust() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.trusted = true
	var err error
	for _, name := range k.kept {
		if e := k.FS.Remove(name); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove obsolete file: %w", e))
		}
	}
	k.kept = nil
	return err
}
