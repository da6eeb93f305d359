package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// testConfig is a small store in a directory of the test's own.
func testConfig(t testing.TB) Config {
	cfg := DefaultConfig(t.TempDir())
	cfg.Node = 7
	cfg.BallastBytes = 1 << 20
	return cfg
}

// start opens a store and runs it until the test ends or stop is called.
func start(t testing.TB, cfg Config) (s *Store, stop func()) {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(context.Background()) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-ran; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func put(t testing.TB, s *Store, key, value string) int64 {
	t.Helper()
	res, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpPut, Key: []byte(key), Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return res.Revision
}

func del(t testing.TB, s *Store, key string) int64 {
	t.Helper()
	res, err := s.Txn(t.Context(), Txn{Then: []Op{{Kind: OpDelete, Key: []byte(key)}}})
	if err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
	return res.Revision
}

func get(t testing.TB, s *Store, key string, rev int64) string {
	t.Helper()
	res, err := s.Range(t.Context(), RangeRequest{Key: []byte(key), Revision: rev})
	if err != nil {
		t.Fatalf("get %s at %d: %v", key, rev, err)
	}
	if len(res.KVs) == 0 {
		return "<none>"
	}
	return string(res.KVs[0].Value)
}

func TestPutGetReopen(t *testing.T) {
	cfg := testConfig(t)
	s, stop := start(t, cfg)
	r1 := put(t, s, "/registry/pods/a", "1")
	r2 := put(t, s, "/registry/pods/a", "2")
	put(t, s, "/registry/events/e", "gone")
	if r2 <= r1 {
		t.Fatalf("revision %d follows %d", r2, r1)
	}
	r3 := del(t, s, "/registry/pods/a")
	stop()

	s, _ = start(t, cfg)
	if s.Revision() <= r3 {
		t.Errorf("revision %d after a restart, was %d", s.Revision(), r3)
	}
	for rev, want := range map[int64]string{r1: "1", r2: "2", r3: "<none>"} {
		if got := get(t, s, "/registry/pods/a", rev); got != want {
			t.Errorf("at %d: %s, want %s", rev, got, want)
		}
	}
	if got := get(t, s, "/registry/events/e", 0); got != "<none>" {
		t.Errorf("an event survived the restart: %s", got)
	}
}

func TestWatchSmoke(t *testing.T) {
	s, _ := start(t, testConfig(t))
	first := put(t, s, "/registry/pods/a", "1")
	w, err := s.Watch(t.Context(), WatchRequest{Key: []byte("/registry/pods/"), End: []byte("/registry/pods0"), StartRevision: first})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 3 {
		put(t, s, "/registry/pods/a", fmt.Sprint(i+2))
	}
	put(t, s, "/registry/other/a", "x")
	n := 0
	for n < 4 {
		b := <-w.Events()
		for _, e := range b.Events {
			n++
			if got := string(e.KV.Value); got != fmt.Sprint(n) {
				t.Errorf("event %d has value %s", n, got)
			}
			if n > 1 && (e.Prev == nil || string(e.Prev.Value) != fmt.Sprint(n-1)) {
				t.Errorf("event %d has previous %v", n, e.Prev)
			}
		}
	}
	w.Progress()
	if b := <-w.Events(); len(b.Events) != 0 || b.Revision != s.Revision() {
		t.Errorf("progress %+v at %d", b, s.Revision())
	}
}
