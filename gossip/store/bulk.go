package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// What a peer sends in bulk, a new replica gets all of its content so, does not
// go through the journal: revisions only grow, so the changes of a batch are a
// sorted table as they come, which the log takes in whole. It is written once
// instead of three times: to the journal, to a table and to a larger table.
//
// The order on disk is: a note of what is to come, the table, then the rest of
// the batch, which counts the table's changes in the tally and removes the note.
// When a note is there at start, the table is taken out again: a batch is there as a
// whole or not at all.

// bulkBytes is from which size on the changes of one request go in as a table.
const bulkBytes = 1 << 20

// bulkKey notes a table that is about to be taken in.
var bulkKey = []byte("mbulk")

// bulk is the table of one batch. It belongs to the committer until seal, then
// to a goroutine that ends with closing done.
type bulk struct {
	path   string
	writer *sstable.Writer
	note   bulkNote
	err    error // of writing the table; after done, of all that followed
	done   chan struct{}
}

// bulkNote says which changes a table brings.
type bulkNote struct {
	first, last, records int64
}

func (n bulkNote) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), uint64(n.first))
	b = binary.BigEndian.AppendUint64(b, uint64(n.last))
	return binary.BigEndian.AppendUint64(b, uint64(n.records))
}

func decodeBulkNote(b []byte) (bulkNote, error) {
	if len(b) != 24 {
		return bulkNote{}, fmt.Errorf("decode note of a table: %d bytes, want 24", len(b))
	}
	return bulkNote{
		first:   int64(binary.BigEndian.Uint64(b)),
		last:    int64(binary.BigEndian.Uint64(b[8:])),
		records: int64(binary.BigEndian.Uint64(b[16:])),
	}, nil
}

const bulkName = "BULK-"

// bulkPath is where table n is written. Two are used in turn: one is written
// while the log takes in the other.
func bulkPath(cfg Config, n int) string {
	return cfg.FS.PathJoin(cfg.Dir, fmt.Sprint(bulkName, n%2))
}

// removeBulks removes what a crash left of tables that were not taken in.
func removeBulks(cfg Config) error {
	for n := range 2 {
		if err := cfg.FS.Remove(bulkPath(cfg, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove table: %w", err)
		}
	}
	return nil
}

// beginBulk makes the changes that are appended to the batch from now on a
// table, if records are enough for one. When no table can be made, they go
// through the journal.
func (c *committer) beginBulk(b *batch, records []*crdt.Record) {
	size := 0
	for _, r := range records {
		if classOf(r.Key).durable {
			size += len(r.Key) + len(r.Value) + len(r.Meta)
		}
	}
	if b.bulk != nil || size < bulkBytes {
		return
	}
	c.makeRoomForBulk()
	path := bulkPath(c.store.cfg, c.bulks)
	f, err := c.store.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		c.store.cfg.Log.Warn("table is not made", "err", err)
		return
	}
	c.bulks++
	const lowest = 6 // the level a table of its own range goes to
	b.bulk = &bulk{
		path: path, done: make(chan struct{}),
		writer: sstable.NewWriter(objstorageprovider.NewFileWritable(f), c.store.options.MakeWriterOptions(lowest, c.store.db.TableFormat())),
	}
}

// smallLog is up to which size the whole log is compacted before a table is
// taken in.
const smallLog = 16 << 20

// makeRoomForBulk brings what a new replica has written so far to the lowest
// level: else it would be rewritten with all the tables that follow, since the
// range from the oldest change to what is noted beside the log spans them.
func (c *committer) makeRoomForBulk() {
	if c.bulks > 0 || c.store.db.Metrics().DiskSpaceUsage() > smallLog {
		return
	}
	if err := c.store.db.Compact(context.Background(), []byte{0}, []byte{0xff}, false); err != nil {
		c.store.cfg.Log.Warn("log is not compacted", "err", oneLine(err.Error()))
	}
}

// add adds an encoded change.
func (t *bulk) add(rev int64, record []byte) {
	if t.err == nil {
		t.err = t.writer.Set(numberKey(logPrefix, rev), record)
	}
	if t.note.records == 0 {
		t.note.first = rev
	}
	t.note.last = rev
	t.note.records++
}

// dropEmptyBulk gives up a table that got no changes: all of them were known.
func (c *committer) dropEmptyBulk(b *batch) {
	if b.bulk == nil || b.bulk.note.records > 0 {
		return
	}
	if err := errors.Join(b.bulk.writer.Close(), c.store.fs.Remove(b.bulk.path)); err != nil {
		c.store.cfg.Log.Warn("empty table stays", "err", oneLine(err.Error()))
	}
	b.bulk = nil
}

// finishBulk starts the table of b, and then the rest of b, on their way to
// disk. b.bulk.done is closed when both are there.
func (c *committer) finishBulk(b *batch) error {
	t := b.bulk
	if err := errors.Join(t.err, t.writer.Close()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	db := c.store.db
	note := db.NewBatch()
	c.must(note.Set(bulkKey, t.note.encode(), nil))
	c.must(note.Set(ceilingKey, encodeCeiling(c.reserved), nil))
	if err := db.ApplyNoSyncWait(note, pebble.Sync); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	c.must(b.disk.Delete(bulkKey, nil))
	c.inFlight = t
	go func() {
		defer close(t.done)
		if t.err = errors.Join(note.SyncWait(), note.Close()); t.err != nil {
			return
		}
		if t.err = db.Ingest(context.Background(), []string{t.path}); t.err != nil {
			return
		}
		t.err = db.ApplyNoSyncWait(b.disk, pebble.Sync)
	}()
	return nil
}

// awaitBulk waits until the last table is in the log: nothing may be written
// that counts on it before.
func (c *committer) awaitBulk() error {
	if c.inFlight == nil {
		return nil
	}
	if err := c.inFlight.wait(c.store); err != nil {
		return err
	}
	c.inFlight = nil
	return nil
}

// wait waits until the table is in the log.
func (t *bulk) wait(s *Store) error {
	select {
	case <-t.done:
	case <-s.failure:
		return s.failErr
	}
	if t.err != nil {
		return fmt.Errorf("take in table: %s", oneLine(t.err.Error()))
	}
	return nil
}

// undoBulk takes the changes of a noted table out of the log. The rest of its batch
// is not there: what is in the table would be known under names that nobody includes,
// be merged without what lost, or tell of a part of a step.
func undoBulk(db *pebble.DB) error {
	b, err := getBytes(db, bulkKey)
	if err != nil || b == nil {
		return err
	}
	n, err := decodeBulkNote(b)
	if err != nil {
		return err
	}
	undo := db.NewBatch()
	err = errors.Join(
		undo.DeleteRange(numberKey(logPrefix, n.first), numberKey(logPrefix, n.last+1), nil),
		undo.Delete(bulkKey, nil),
		undo.Commit(pebble.Sync), undo.Close(),
	)
	if err != nil {
		return fmt.Errorf("take table out: %w", err)
	}
	return nil
}
