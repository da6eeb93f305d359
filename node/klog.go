package node

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// redirectUpstreamLogs sends what upstream's code logs through klog to log.
// Its information is debug here: a quiet cluster says hundreds of such lines.
func redirectUpstreamLogs(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(upstreamHandler{log.Handler()}))
}

// upstreamHandler takes upstream's levels down by one notch.
type upstreamHandler struct{ slog.Handler }

func upstreamLevel(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return min(level, slog.LevelDebug)
	}
	return level
}

func (h upstreamHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, upstreamLevel(level))
}

func (h upstreamHandler) Handle(ctx context.Context, record slog.Record) error {
	record.Level = upstreamLevel(record.Level)
	return h.Handler.Handle(ctx, record)
}

func (h upstreamHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return upstreamHandler{h.Handler.WithAttrs(attrs)}
}

func (h upstreamHandler) WithGroup(name string) slog.Handler {
	return upstreamHandler{h.Handler.WithGroup(name)}
}
