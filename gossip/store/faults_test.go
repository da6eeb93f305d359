package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// watchedFS counts the bytes written and can make writes fail.
type watchedFS struct {
	vfs.FS
	bytes atomic.Int64
	calls atomic.Int64
	mu    sync.Mutex
	fail  func(name string) error
}

func (fs *watchedFS) write(name string, n int) error {
	fs.bytes.Add(int64(n))
	fs.calls.Add(1)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.fail == nil {
		return nil
	}
	return fs.fail(name)
}

func (fs *watchedFS) setFail(fail func(name string) error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.fail = fail
}

func (fs *watchedFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &watchedFile{File: f, fs: fs, name: name}, nil
}

func (fs *watchedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.write(name, 0); err != nil {
		return nil, err
	}
	f, err := fs.FS.Create(name, c)
	return fs.wrap(name, f, err)
}

func (fs *watchedFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return fs.wrap(name, f, err)
}

func (fs *watchedFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(oldname, newname, c)
	return fs.wrap(newname, f, err)
}

type watchedFile struct {
	vfs.File
	fs   *watchedFS
	name string
}

func (f *watchedFile) Write(b []byte) (int, error) {
	if err := f.fs.write(f.name, len(b)); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *watchedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fs.write(f.name, len(b)); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func tryPut(t testing.TB, s *Store, key, value string) error {
	_, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpPut, Key: []byte(key), Value: []byte(value)}}})
	return err
}

func TestVolatileKeysStayOffTheDisk(t *testing.T) {
	cfg := testConfig(t)
	fs := &watchedFS{FS: vfs.NewMem()}
	cfg.FS = fs
	s, _ := start(t, cfg)
	put(t, s, "/registry/pods/a", "durable")
	l, err := s.Grant(t.Context(), 0, 3600)
	if err != nil {
		t.Fatal(err)
	}
	bytes, calls := fs.bytes.Load(), fs.calls.Load()
	for range 500 {
		for _, key := range []string{
			"/registry/events/default/e", "/registry/leases/kube-system/kube-scheduler", "/registry/masterleases/10.0.0.1",
			"/registry/leases/kube-node-lease/n1", "/registry/leases/kube-system/apiserver-x", "compact_rev_key",
		} {
			_, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpPut, Key: []byte(key), Value: make([]byte, 1000), Lease: l.ID}}})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Compact(t.Context(), s.Revision()); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), l.ID); err != nil {
		t.Fatal(err)
	}
	put(t, s, "/registry/events/default/last", "")
	if n := fs.bytes.Load() - bytes; n != 0 || fs.calls.Load() != calls {
		t.Errorf("%d bytes written for keys kept in memory", n)
	}
	put(t, s, "/registry/pods/a", "durable")
	if fs.bytes.Load() == bytes {
		t.Error("a durable put wrote nothing")
	}
}

// smallDisk returns the configuration of a store on a disk in memory, which has as
// much room as the test says.
func smallDisk(t *testing.T) (cfg Config, room func(free uint64)) {
	cfg = testConfig(t)
	mem := vfs.NewMem()
	cfg.FS = mem
	room = func(n uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40}) }
	room(1 << 30)
	return cfg, room
}

func TestDiskFull(t *testing.T) {
	cfg, room := smallDisk(t)
	s, _ := start(t, cfg)
	put(t, s, "/registry/pods/a", "1")

	room(uint64(cfg.MinFreeBytes) - 1)
	if err := tryPut(t, s, "/registry/pods/a", "2"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("put on a full disk: %v, want ErrNoSpace", err)
	}
	if got := get(t, s, "/registry/pods/a", 0); got != "1" {
		t.Errorf("read on a full disk: %s", got)
	}
	put(t, s, "/registry/events/e", "memory has room")
	del(t, s, "/registry/pods/a")
	room(uint64(cfg.MinFreeBytes)/4 - 1)
	if _, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpDelete, Key: []byte("/registry/pods/a")}}}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("delete on a full disk: %v, want ErrNoSpace", err)
	}

	room(uint64(cfg.MinFreeBytes))
	put(t, s, "/registry/pods/a", "3")
	if got := get(t, s, "/registry/pods/a", 0); got != "3" {
		t.Errorf("read with room again: %s", got)
	}
}

// TestBallast fills the disk between the check and the write.
func TestBallast(t *testing.T) {
	cfg := testConfig(t)
	mem := vfs.NewMem()
	room := func(n uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40}) }
	room(1 << 30)
	fs := &watchedFS{FS: mem}
	cfg.FS = fs
	s, stop := start(t, cfg)
	ballast := mem.PathJoin(cfg.Dir, "BALLAST")
	if info, err := mem.Stat(ballast); err != nil || info.Size() != cfg.BallastBytes {
		t.Fatalf("ballast: %v, %v", info, err)
	}
	fs.setFail(func(string) error {
		if _, err := mem.Stat(ballast); err == nil {
			return syscall.ENOSPC
		}
		return nil
	})
	put(t, s, "/registry/pods/a", "in the room of the ballast")
	if _, err := mem.Stat(ballast); err == nil {
		t.Error("the ballast is still there")
	}
	room(uint64(cfg.MinFreeBytes))
	if err := tryPut(t, s, "/registry/pods/a", "2"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("put without ballast: %v, want ErrNoSpace", err)
	}
	fs.setFail(nil)
	room(uint64(cfg.MinFreeBytes + cfg.BallastBytes))
	put(t, s, "/registry/pods/a", "3")
	if _, err := mem.Stat(ballast); err != nil {
		t.Errorf("the ballast is not back: %v", err)
	}
	stop()
	s, _ = start(t, cfg)
	if got := get(t, s, "/registry/pods/a", 0); got != "3" {
		t.Errorf("after a restart: %s", got)
	}
}

// TestLogFails lets every write fail for good.
func TestLogFails(t *testing.T) {
	cfg := testConfig(t)
	fs := &watchedFS{FS: vfs.NewMem()}
	cfg.FS = fs
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(t.Context()) }()
	put(t, s, "/registry/pods/a", "1")
	fs.setFail(func(string) error { return syscall.EIO })
	if err := tryPut(t, s, "/registry/pods/a", "2"); err == nil {
		t.Error("a put that cannot be written was acknowledged")
	}
	if err := <-ran; err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("run ended with %v, want one line", err)
	}
	if err := tryPut(t, s, "/registry/events/a", "2"); err == nil {
		t.Error("a put after the failure was acknowledged")
	}
	if got := get(t, s, "/registry/pods/a", 0); got != "1" {
		t.Errorf("read after the failure: %s", got)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close after the failure: %v", err)
	}
}

func TestLocked(t *testing.T) {
	cfg := testConfig(t)
	if dir := os.Getenv("MOOT_TEST_LOCKED_DIR"); dir != "" {
		cfg.Dir = dir
		_, err := Open(cfg)
		if !errors.Is(err, ErrLocked) {
			t.Errorf("open of a locked store: %v", err)
		}
		return
	}
	_, stop := start(t, cfg)
	if _, err := Open(cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("second open in one process: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLocked$", "-test.v")
	cmd.Env = append(os.Environ(), "MOOT_TEST_LOCKED_DIR="+cfg.Dir)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("second process: %v\n%s", err, out)
	}
	stop()
	start(t, cfg)
}

// TestEventsAreBounded: Events that pile up push the oldest out, and watchers
// see them go.
func TestEventsAreBounded(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	cfg.EventBytes = 100_000
	s, stop := start(t, cfg)
	put(t, s, "/registry/leases/kube-system/x", "stays")
	w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/registry/events/"), End: []byte("/registry/events0")})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 1000
	go func() {
		for i := range n {
			key := fmt.Sprintf("/registry/events/default/%04d", i)
			for range 3 {
				_ = tryPut(t, s, key, strings.Repeat("x", 1000))
			}
			if i%10 == 0 {
				_, _ = s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpDelete, Key: []byte(key)}}})
			}
		}
	}()
	there := map[string]bool{}
	for last := ""; last < "/registry/events/default/0999"; {
		b, ok := <-w.Events()
		if !ok {
			t.Fatal(w.Err())
		}
		for _, e := range b.Events {
			if there[string(e.KV.Key)] = e.Type == EventPut; e.Type == EventPut {
				last = string(e.KV.Key)
			} else {
				delete(there, string(e.KV.Key))
			}
		}
		if len(there) > 105 {
			t.Fatalf("%d events of 1000 bytes are there", len(there))
		}
	}
	if len(there) < 80 || !there["/registry/events/default/0998"] {
		t.Errorf("%d events are left", len(there))
	}
	if got := get(t, s, "/registry/leases/kube-system/x", 0); got != "stays" {
		t.Errorf("the lease is %s", got)
	}
	stop()
	if c := s.committer; len(c.events.order) > 3*len(there)+1100 {
		t.Errorf("%d puts are remembered for %d events", len(c.events.order), len(there))
	}
}
