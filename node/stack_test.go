package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"
)

// journal records what the parts of a test did, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) part(name string) part {
	return part{name: name, stopWithin: 10 * time.Second, run: func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		ready()
		<-ctx.Done()
		j.add("stop " + name)
		return ctx.Err()
	}}
}

func quietStack() *stack {
	return newStack(slog.New(slog.DiscardHandler), func(string, time.Duration) {})
}

func TestStackStartsInOrderAndStopsInTheOpposite(t *testing.T) {
	var j journal
	s := quietStack()
	for _, name := range []string{"store", "api", "kubelet"} {
		if err := s.start(t.Context(), j.part(name)); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	want := []string{"start store", "start api", "start kubelet", "stop kubelet", "stop api", "stop store"}
	if !slices.Equal(j.lines, want) {
		t.Errorf("order %q, want %q", j.lines, want)
	}
}

func TestStackReportsTheFirstFailure(t *testing.T) {
	broken := errors.New("broken")
	failing := part{name: "api", stopWithin: time.Second, run: func(context.Context, func()) error { return broken }}

	t.Run("before ready", func(t *testing.T) {
		s := quietStack()
		defer s.stop()
		if err := s.start(t.Context(), failing); !errors.Is(err, broken) {
			t.Errorf("start: %v, want %v", err, broken)
		}
	})
	t.Run("after ready", func(t *testing.T) {
		s := quietStack()
		defer s.stop()
		fail := make(chan struct{})
		later := part{name: "api", stopWithin: time.Second, run: func(_ context.Context, ready func()) error {
			ready()
			<-fail
			return broken
		}}
		if err := s.start(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		close(fail)
		if err := s.wait(t.Context()); !errors.Is(err, broken) {
			t.Errorf("wait: %v, want %v", err, broken)
		}
	})
	t.Run("ended by itself", func(t *testing.T) {
		s := quietStack()
		defer s.stop()
		quits := part{name: "api", stopWithin: time.Second, run: func(context.Context, func()) error { return nil }}
		if err := s.start(t.Context(), quits); err == nil {
			t.Error("a part that ended by itself is no failure")
		}
	})
}

func TestStackStopsPartsThoughItsCallerIsGone(t *testing.T) {
	var j journal
	s := quietStack()
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.start(ctx, j.part("store")); err != nil {
		t.Fatal(err)
	}
	cancel()
	j.mu.Lock()
	stopped := slices.Contains(j.lines, "stop store")
	j.mu.Unlock()
	if stopped {
		t.Error("the part stopped with its caller, out of order")
	}
	s.stop()
	if !slices.Contains(j.lines, "stop store") {
		t.Error("the part was not stopped")
	}
}

func TestOrReady(t *testing.T) {
	t.Run("the other reason", func(t *testing.T) {
		other := make(chan struct{})
		close(other)
		s := quietStack()
		defer s.stop()
		waits := part{name: "DNS", stopWithin: 10 * time.Second, run: orReady(other, func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return nil
		})}
		if err := s.start(t.Context(), waits); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("ended before either", func(t *testing.T) {
		s := quietStack()
		defer s.stop()
		ends := part{name: "DNS", stopWithin: 10 * time.Second, run: orReady(make(chan struct{}), func(context.Context, func()) error { return nil })}
		if err := s.start(t.Context(), ends); err == nil {
			t.Error("a part that ended before it was ready counts as started")
		}
	})
}
