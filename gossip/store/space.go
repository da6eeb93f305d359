package store

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// space keeps the log from ever meeting a full disk, which it would not
// survive. Writes are refused while less than min is free; should the disk fill
// regardless, between the check and the write, the ballast file is removed,
// which makes room for what is under way. It comes back when there is room
// again.
type space struct {
	fs      vfs.FS
	dir     string
	min     int64
	ballast int64
	log     *slog.Logger

	mu      sync.Mutex
	refused bool // the last check failed
	spent   bool // the ballast is gone
}

// errNoUsage: the file system cannot tell how much is free.
var errNoUsage = errors.New("free space is unknown")

func (s *space) free() (int64, error) {
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil || usage.TotalBytes == 0 {
		return 0, errNoUsage
	}
	return int64(min(usage.AvailBytes, 1<<62)), nil
}

// check reports [ErrNoSpace] while the disk is too full for a write.
func (s *space) check() error {
	free, err := s.free()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	need := s.min
	if s.spent {
		need += s.ballast
	}
	if free < need {
		if !s.refused {
			s.log.Warn("disk is nearly full, writes are refused", "dir", s.dir, "free", free, "need", need)
		}
		s.refused = true
		return fmt.Errorf("%d bytes are free under %s, %d are needed: %w", free, s.dir, need, ErrNoSpace)
	}
	if s.refused {
		s.log.Info("disk has room again, writes go on", "dir", s.dir, "free", free)
	}
	s.refused = false
	if s.spent {
		if err := s.layBallast(); err != nil {
			return fmt.Errorf("%w: %w", err, ErrNoSpace)
		}
		s.spent = false
	}
	return nil
}

// openBytes is what opening the log takes beside room for its journal.
const openBytes = 4 << 20

// checkOpen reports [ErrNoSpace] when there is too little room to open the log
// in dir: its journal is written out into a table then.
func (s *space) checkOpen(dir string) error {
	free, err := s.free()
	if err != nil {
		return nil
	}
	if _, err := s.fs.Stat(s.ballastPath()); err == nil {
		free += s.ballast
	}
	need := int64(openBytes)
	names, err := s.fs.List(dir)
	if err != nil {
		names = nil // a first start
	}
	for _, name := range names {
		if info, err := s.fs.Stat(s.fs.PathJoin(dir, name)); err == nil && strings.HasSuffix(name, ".log") {
			need += info.Size()
		}
	}
	if free >= need {
		return nil
	}
	return fmt.Errorf("open store log %s: %w: %d bytes are free, %d are needed: free some space and start again",
		dir, ErrNoSpace, free, need)
}

// spare reports whether there is room for small writes that free more.
func (s *space) spare() bool {
	free, err := s.free()
	return err != nil || free >= s.min/4
}

func (s *space) ballastPath() string { return s.fs.PathJoin(s.dir, "BALLAST") }

// prepare lays the ballast down if there is room for it and it is not there.
func (s *space) prepare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ballast == 0 {
		return
	}
	if info, err := s.fs.Stat(s.ballastPath()); err == nil && info.Size() == s.ballast {
		return
	}
	free, err := s.free()
	if err != nil {
		return
	}
	s.spent = free < s.min+s.ballast || s.layBallast() != nil
}

// layBallast makes the ballast: blocks set aside by the file system, or zeros
// where it cannot do that, since a hole would hold no room.
func (s *space) layBallast() error {
	f, err := s.fs.Create(s.ballastPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create ballast: %w", err)
	}
	if err = f.Preallocate(0, s.ballast); err == nil {
		_, err = f.WriteAt([]byte{0}, s.ballast-1)
	} else {
		block := make([]byte, 256<<10)
		err = nil
		for left := s.ballast; left > 0 && err == nil; left -= int64(len(block)) {
			_, err = f.Write(block[:min(left, int64(len(block)))])
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write ballast: %w", err), s.fs.Remove(s.ballastPath()))
	}
	return nil
}

// release gives the ballast up. It runs while a write waits.
func (s *space) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spent {
		return
	}
	s.spent = true
	if err := s.fs.Remove(s.ballastPath()); err != nil {
		s.log.Warn("ballast is not given up", "err", err)
		return
	}
	s.log.Warn("disk is full, ballast given up", "dir", s.dir, "bytes", s.ballast)
}
