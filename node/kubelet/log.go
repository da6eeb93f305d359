package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// noteHandler passes records on, and hands the errors among them to note first:
// the kubelet logs why it gives up and exits in the next statement.
type noteHandler struct {
	slog.Handler
	note  func(reason string)
	attrs []slog.Attr
}

func (h noteHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError || h.Handler.Enabled(ctx, level)
}

func (h noteHandler) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelError {
		h.note(describe(rec, h.attrs))
	}
	if !h.Handler.Enabled(ctx, rec.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, rec)
}

func (h noteHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return noteHandler{Handler: h.Handler.WithAttrs(attrs), note: h.note, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h noteHandler) WithGroup(name string) slog.Handler {
	return noteHandler{Handler: h.Handler.WithGroup(name), note: h.note, attrs: h.attrs}
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
