package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// startBubble runs a store inside a synctest bubble.
func startBubble(t *testing.T, cfg Config) (s *Store, stop func()) {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(context.Background()) }()
	return s, func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func putLeased(t *testing.T, s *Store, key string, lease int64) error {
	_, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpPut, Key: []byte(key), Value: []byte("v"), Lease: lease}}})
	return err
}

// pass lets time go by.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestLeaseExpires(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig(dir)
		cfg.FS = vfs.NewMem()
		cfg.BallastBytes = 0
		s, stop := startBubble(t, cfg)
		defer stop()
		if _, err := s.Grant(t.Context(), 5, 10); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Grant(t.Context(), 5, 10); !errors.Is(err, ErrLeaseExists) {
			t.Errorf("second grant: %v", err)
		}
		for _, key := range []string{"/registry/events/a", "/registry/pods/a", "/registry/pods/moved"} {
			if err := putLeased(t, s, key, 5); err != nil {
				t.Fatal(err)
			}
		}
		put(t, s, "/registry/pods/moved", "off the lease")
		if err := putLeased(t, s, "/registry/pods/b", 6); !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("put on an unknown lease: %v", err)
		}
		pass(9 * time.Second)
		if st, err := s.TimeToLive(5, true); err != nil || st.Remaining != 1 || st.TTL != 10 || len(st.Keys) != 2 {
			t.Errorf("status %+v, %v", st, err)
		}
		if ttl, err := s.KeepAlive(5); err != nil || ttl != 10 {
			t.Errorf("keep alive: %d, %v", ttl, err)
		}
		pass(9 * time.Second)
		if got := get(t, s, "/registry/pods/a", 0); got != "v" {
			t.Errorf("kept alive, the key is %s", got)
		}
		before := s.Revision()
		pass(2 * time.Second)
		for key, want := range map[string]string{
			"/registry/events/a": "<none>", "/registry/pods/a": "<none>", "/registry/pods/moved": "off the lease",
		} {
			if got := get(t, s, key, 0); got != want {
				t.Errorf("%s is %s after the lease ran out, want %s", key, got, want)
			}
		}
		if got := get(t, s, "/registry/pods/a", before); got != "v" {
			t.Errorf("the past of a leased key is %s", got)
		}
		if _, err := s.KeepAlive(5); !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("keep alive of an ended lease: %v", err)
		}
		if err := s.Revoke(t.Context(), 5); !errors.Is(err, ErrLeaseNotFound) {
			t.Errorf("revoke of an ended lease: %v", err)
		}
	})
}

func TestLeaseSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig(dir)
		cfg.FS = vfs.NewMem()
		cfg.BallastBytes = 0
		s, stop := startBubble(t, cfg)
		for id, key := range map[int64]string{5: "/registry/pods/a", 6: "/registry/events/a", 7: "/registry/pods/b"} {
			if _, err := s.Grant(t.Context(), id, 10); err != nil {
				t.Fatal(err)
			}
			if err := putLeased(t, s, key, id); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Revoke(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		pass(8 * time.Second)
		stop()
		s, stop = startBubble(t, cfg)
		defer stop()
		if ids := s.Leases(); len(ids) != 1 || ids[0] != 5 {
			t.Errorf("leases %v after a restart, want 5 alone", ids)
		}
		pass(9 * time.Second)
		if got := get(t, s, "/registry/pods/a", 0); got != "v" {
			t.Errorf("the restart shortened the lease: %s", got)
		}
		pass(2 * time.Second)
		if got := get(t, s, "/registry/pods/a", 0); got != "<none>" {
			t.Errorf("the lease did not run out: %s", got)
		}
	})
}

// TestIdleWritesNothing: an idle cluster renews leases; the disk stays still.
func TestIdleWritesNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		fs := &watchedFS{FS: vfs.NewMem()}
		cfg := DefaultConfig(dir)
		cfg.FS = fs
		cfg.BallastBytes = 0
		cfg.Now = func() time.Time { return time.Now().AddDate(30, 0, 0) } // a bubble starts in 2000
		s, stop := startBubble(t, cfg)
		defer stop()
		for range 100 {
			put(t, s, "/registry/pods/a", "busy")
		}
		pass(time.Minute)
		bytes := fs.bytes.Load()
		for i := range 360 * 3 {
			put(t, s, "/registry/leases/kube-node-lease/n1", "renewed")
			put(t, s, "/registry/leases/kube-system/kube-scheduler", "renewed")
			if i%30 == 0 {
				put(t, s, "compact_rev_key", "x")
				if err := s.Compact(t.Context(), s.Revision()); err != nil {
					t.Fatal(err)
				}
			}
			pass(10 * time.Second)
		}
		// One reservation an hour, and what the first compaction removed.
		if n := fs.bytes.Load() - bytes; n > 4000 {
			t.Errorf("%d bytes written in three idle hours", n)
		} else {
			t.Logf("%d bytes written in three idle hours", n)
		}
	})
}
