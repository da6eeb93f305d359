package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// Open opens the store in cfg.Dir, making it when it is not there, and reads
// its index into memory. The store starts no goroutine of its own; call
// [Store.Run] to serve writes and [Store.Close] when done with it.
//
// It fails with [ErrLocked] when another process has the directory, and with
// [ErrDamaged] when a file cannot be read. It repairs nothing, and takes out
// nothing but a table whose batch is not whole, see bulk.go.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := makeDir(cfg.FS, cfg.Dir); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockDir(cfg)
	if err != nil {
		return nil, err
	}
	s, err := open(cfg, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// makeDir makes dir and what is missing above it, so that a power loss does not
// take it away again.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	parent := fs.PathDir(dir)
	if parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

func lockDir(cfg Config) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(cfg.Dir, cfg.FS)
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES) && os.Geteuid() == 0,
		strings.Contains(err.Error(), "lock held by current process"):
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, ErrLocked)
	default:
		return nil, fmt.Errorf("lock store %s: %w", cfg.Dir, err)
	}
}

func open(cfg Config, lock *pebble.Lock) (*Store, error) {
	s := &Store{
		cfg:     cfg,
		lock:    lock,
		recent:  newRecent(cfg.RecentBytes),
		hub:     newHub(),
		queue:   make(chan *request, cfg.QueueLength),
		failure: make(chan struct{}),
		idle:    make(chan struct{}, 1),
		nudge:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		space: &space{
			fs: cfg.FS, dir: cfg.Dir, min: cfg.MinFreeBytes, ballast: cfg.BallastBytes, log: cfg.Log,
		},
	}
	s.pins = pins{held: make(map[int64]int), nudge: s.nudgeCommitter}
	origin, drawn, err := openOrigin(cfg)
	if errors.Is(err, syscall.ENOSPC) {
		return nil, damaged(cfg.Dir, err)
	} else if err != nil {
		return nil, err
	}
	s.space.prepare()
	logDir := cfg.FS.PathJoin(cfg.Dir, "log")
	if err := s.space.checkOpen(logDir); err != nil {
		return nil, err
	}
	if cfg.BallastBytes > 0 {
		cfg.FS = vfs.OnDiskFull(cfg.FS, s.space.release)
	}
	keeper := &keeper{FS: cfg.FS}
	cfg.FS = keeper
	s.cache = pebble.NewCache(cfg.CacheBytes)
	log := &pebbleLog{log: cfg.Log, fail: s.fail}
	s.fs, s.options = cfg.FS, logOptions(cfg, s.cache, log)
	if err := removeBulks(cfg); err != nil {
		s.cfg.Log.Warn("table stays", "err", err)
	}
	if err := s.openLog(logDir, s.options); err != nil {
		s.cache.Unref()
		return nil, damaged(logDir, err)
	}
	if err := s.unlessFailed(func() error { return s.load(origin, drawn) }); err != nil {
		if !s.failed() {
			s.abandon()
		}
		return nil, damaged(logDir, err)
	}
	if err := keeper.trust(); err != nil {
		cfg.Log.Warn("obsolete files stay", "err", oneLine(err.Error()))
	}
	return s, nil
}

// abandon closes a log that could not be read.
func (s *Store) abandon() {
	defer s.cache.Unref()
	err := s.db.Close()
	if s.mark != nil {
		err = errors.Join(err, s.mark.file.Close())
	}
	if err != nil {
		s.cfg.Log.Warn("log is not closed cleanly", "err", oneLine(err.Error()))
	}
}

// damaged says which file is damaged and what to do about it.
func damaged(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return fmt.Errorf("open store log %s: %w: free some space and start again", dir, ErrNoSpace)
	}
	return fmt.Errorf("open store log %s: %w: %s: restore the directory from a backup, or move it aside to start empty",
		dir, ErrDamaged, oneLine(err.Error()))
}

// openLog opens Pebble, which panics on some kinds of damage.
func (s *Store) openLog(dir string, opts *pebble.Options) error {
	return s.unlessFailed(func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		s.db, err = pebble.Open(dir, opts)
		return err
	})
}

// load reads the log into a fresh committer. Base is the incarnation in the file,
// and drawn says that it is a new one.
func (s *Store) load(base crdt.Origin, drawn bool) error {
	now := s.cfg.Now()
	s.base = base
	if err := s.checkFormat(); err != nil {
		return err
	}
	var reserved ceiling
	if b, err := getBytes(s.db, ceilingKey); err != nil {
		return err
	} else if b != nil {
		if reserved, err = decodeCeiling(b); err != nil {
			return err
		}
	}
	ld := &loader{
		head: head{view: view{items: newTree(), beyond: crdt.Vector{}}},
		rev:  reserved.rev,
		seq:  reserved.seq,
		seen: make(map[int64]crdt.Vector),
	}
	origin, err := readOrigin(s.db, base)
	if err != nil {
		return err
	}
	ld.head.claims.own.Origin, ld.head.claims.memory.Origin = origin, drawVolatile()
	if err := ld.readReplica(s.db); err != nil {
		return err
	}
	if b, err := getBytes(s.db, floorKey); err != nil {
		return err
	} else if b != nil {
		if ld.head.floor, err = decodeNumber(b); err != nil {
			return err
		}
	}
	if err := undoBulk(s.db); err != nil {
		return err
	}
	garbage, err := ld.readLog(s.db)
	if err != nil {
		return err
	}
	if ld.owed != nil {
		ld.owed.addBeyond(&ld.head.view, ld.head.beyond)
	}
	var marked int64
	if s.mark, marked, err = openMark(s.cfg); err != nil {
		return err
	}
	if ld.tally, err = ld.checkWhole(s.cfg, s.db, marked); err != nil {
		return err
	}
	reserved.rev, reserved.seq = max(reserved.rev, ld.rev), max(reserved.seq, ld.seq)
	boot := reserved.firstRevision(now, s.cfg.Node)
	ld.head.rev, ld.head.boot = int64(boot), int64(boot)
	if s.lessor, err = ld.openLeases(s.db, s.cfg.Now); err != nil {
		return err
	}
	held, err := s.readHolders()
	if err != nil {
		return err
	}
	s.committer = newCommitter(s, ld, reserved)
	if s.committer.doubt, err = s.inDoubt(drawn); err != nil {
		return err
	}
	if err := s.committer.begin(held, garbage); err != nil {
		return err
	}
	s.opened, s.reached = now, s.committer.clock.High.Time()
	s.view.Store(s.committer.freeze())
	s.hub.rev = s.committer.head.rev
	s.pins.trimmed = s.committer.head.floor
	return nil
}

func (s *Store) checkFormat() error {
	b, err := getBytes(s.db, formatKey)
	if err != nil {
		return err
	}
	if b == nil {
		return s.db.Set(formatKey, encodeNumber(formatVersion), pebble.NoSync)
	}
	n, err := decodeNumber(b)
	if err != nil {
		return err
	}
	if n != formatVersion {
		return fmt.Errorf("its format is %d and this version reads %d", n, formatVersion)
	}
	return nil
}

// loader rebuilds the index from the log.
type loader struct {
	head   head
	rev    crdt.Revision // highest revision seen
	seq    uint64        // highest sequence of its own seen
	clock  crdt.Clock
	owed   *owed
	graves graves
	seen   map[int64]crdt.Vector // revision → what a joined record includes

	records int64 // read from the log
	tally   tally // what the log says it holds
}

// readLog adds every record of the log to the index. It returns the versions
// that a compaction cut short left behind.
func (l *loader) readLog(db *pebble.DB) ([]version, error) {
	iter, err := db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{logPrefix}, UpperBound: []byte{logPrefix + 1},
	})
	if err != nil {
		return nil, err
	}
	for ok := iter.First(); ok; ok = iter.Next() {
		if err := l.addRecord(iter); err != nil {
			return nil, errors.Join(err, iter.Close())
		}
	}
	if err := errors.Join(iter.Error(), iter.Close()); err != nil {
		return nil, err
	}
	return l.sweep(), nil
}

func (l *loader) addRecord(iter *pebble.Iterator) error {
	value, err := iter.ValueAndErr()
	if err != nil {
		return err
	}
	rec, err := crdt.DecodeRecord(value)
	if err != nil {
		return err
	}
	if !bytes.Equal(iter.Key(), numberKey(logPrefix, int64(rec.Mod))) {
		return fmt.Errorf("record of revision %d is at key %x", rec.Mod, iter.Key())
	}
	l.records++
	if classOf(rec.Key).replicated {
		l.head.addSeen(l.head.beyond, rec)
	}
	v := newVersion(rec, classOf(rec.Key).onDisk(), rec.Born())
	if v.deleted {
		alive, _ := l.head.get(rec.Key)
		v.silent = alive == nil && v.rev > l.head.floor
	}
	if v.joined {
		l.seen[v.rev] = rec.Seen()
	}
	l.head.add(bytes.Clone(rec.Key), v)
	l.rev = max(l.rev, rec.Mod)
	l.clock.High = max(l.clock.High, rec.Latest())
	if rec.Dot.Origin == l.head.claims.own.Origin {
		l.seq = max(l.seq, rec.Dot.Seq)
	}
	return nil
}

// sweep takes out of the index and the history what a read at or after the
// floor does not need.
func (l *loader) sweep() []version {
	past := l.head.past
	garbage, _ := l.head.trim(l.head.floor, len(l.head.history), func(v *version) {
		past.Note(v.dot)
		past.Join(l.seen[v.rev])
	})
	l.head.items.Ascend(func(it *item) bool {
		if v := it.newest(); v.deleted {
			l.graves.add(grave{rev: v.rev, key: it.key}, classOf(it.key))
		}
		return true
	})
	l.graves.sort()
	// The history was longer than what a view keeps; let go of the rest.
	l.head.history = append([]entry(nil), l.head.history...)
	return garbage
}

// writeFile writes a small file so that it is either whole or not there. Text is
// asked for once the file exists under the name it gets.
func writeFile(fs vfs.FS, dir, path string, text func(tmp string) string) error {
	tmp := path + ".tmp"
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text(tmp)))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
