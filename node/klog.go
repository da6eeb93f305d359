package node

import (
	"context"
	stdlog "log"
	"log/slog"
	"strings"

	"k8s.io/klog/v2"
)

// redirectUpstreamLogs sends what upstream's code logs through klog to log.
// Its information is debug here: a quiet cluster says hundreds of such lines.
// What comes through the standard library's logger, CoreDNS' lines for one, is
// told apart by the level in its text.
func redirectUpstreamLogs(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(upstreamHandler{log.Handler()}))
	stdlog.SetFlags(0)
	stdlog.SetOutput(lineLogger{log})
}

// lineLogger logs each write as one record.
type lineLogger struct{ log *slog.Logger }

func (l lineLogger) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelDebug
	for marker, of := range map[string]slog.Level{
		"[WARNING] ": slog.LevelWarn, "[ERROR] ": slog.LevelError, "[FATAL] ": slog.LevelError, "[INFO] ": slog.LevelDebug,
	} {
		if rest, ok := strings.CutPrefix(text, marker); ok {
			text, level = rest, of
		}
	}
	l.log.Log(context.Background(), level, text)
	return len(line), nil
}

// upstreamHandler takes upstream's levels down by one notch, and what would
// alarm without reason down to debug.
type upstreamHandler struct{ slog.Handler }

// staleEndpoints is what an API server says that starts while others serve: it
// takes their endpoints of default/kubernetes, which the leader keeps here, for
// its own of before a crash.
const staleEndpoints = "Found stale data, removed previous endpoints on kubernetes service"

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
	if strings.HasPrefix(record.Message, staleEndpoints) {
		record.Level = slog.LevelDebug
		if !h.Handler.Enabled(ctx, record.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, record)
}

func (h upstreamHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return upstreamHandler{h.Handler.WithAttrs(attrs)}
}

func (h upstreamHandler) WithGroup(name string) slog.Handler {
	return upstreamHandler{h.Handler.WithGroup(name)}
}
