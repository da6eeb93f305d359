package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
)

// startLog passes the kubelet's records on. While the kubelet starts it hands
// the errors among them to note first: the kubelet logs why it gives up and
// exits in the next statement. Errors that every start brings are debug then,
// and so are all errors once it was told to stop, and what the kubelet tells at
// its information levels at any time.
type startLog struct {
	slog.Handler
	note     func(reason string)
	starting *atomic.Bool
	stopped  <-chan struct{} // closed when the kubelet is to stop
	attrs    []slog.Attr
}

// expectedAtStart lists, by the beginning of their text, errors that the kubelet
// logs at every start, because it asks before the answer can be there, or on
// every host that does not let it change its own limits.
func expectedAtStart() []string {
	return []string{
		"Skipping pod synchronization",
		"Error getting the current node from lister",
		"Unable to register mirror pod because node is not registered yet",
		"Failed to get node when trying to set owner ref to the node lease",
		"Failed to read data from checkpoint",
		"Image garbage collection failed once",
		"eviction manager: failed to check if we have separate container filesystem",
		"Eviction manager: failed to get summary stats",
		"Failed to set rlimit on max file handles",
		"Failed to ensure process in container with oom score",
	}
}

func (h startLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError || h.Handler.Enabled(ctx, quieter(level))
}

func (h startLog) Handle(ctx context.Context, rec slog.Record) error {
	switch {
	case h.isStopped():
		rec.Level = slog.LevelDebug
	case rec.Level < slog.LevelError:
		rec.Level = quieter(rec.Level)
	case !h.starting.Load():
	case isExpected(rec.Message):
		rec.Level = slog.LevelDebug
	default:
		h.note(describe(rec, h.attrs))
	}
	if !h.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, rec)
}

func (h startLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.Handler = h.Handler.WithAttrs(attrs)
	h.attrs = append(slices.Clip(h.attrs), attrs...)
	return h
}

func (h startLog) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

func (h startLog) isStopped() bool {
	select {
	case <-h.stopped:
		return true
	default:
		return false
	}
}

func quieter(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return min(level, slog.LevelDebug)
	}
	return level
}

func isExpected(message string) bool {
	for _, beginning := range expectedAtStart() {
		if strings.HasPrefix(message, beginning) {
			return true
		}
	}
	return false
}

// describe renders an error record on one line: message, then the error.
func describe(rec slog.Record, attrs []slog.Attr) string {
	var b strings.Builder
	b.WriteString(rec.Message)
	add := func(a slog.Attr) bool {
		if a.Key == "err" || a.Key == "error" {
			fmt.Fprintf(&b, ": %v", a.Value.Any())
		}
		return true
	}
	for _, a := range attrs {
		add(a)
	}
	rec.Attrs(add)
	const limit = 500
	line := strings.Join(strings.Fields(b.String()), " ")
	if len(line) > limit {
		line = strings.ToValidUTF8(line[:limit], "") + "…"
	}
	return line
}
