package runtime

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// logHook turns containerd's log entries into records of ours. containerd's
// information level is one line or more per call: debug, to us.
type logHook struct {
	log *slog.Logger
	// building is set while the server is built. Its warnings are then of what
	// the host could have and lacks; what the node needs and lacks is an error.
	building atomic.Bool
}

func (h *logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h *logHook) Fire(e *logrus.Entry) error {
	level := logLevel(e.Level)
	if level == slog.LevelWarn && h.building.Load() {
		level = slog.LevelDebug
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	if !h.log.Enabled(ctx, level) {
		return nil
	}
	when := e.Time
	if when.IsZero() {
		when = time.Now()
	}
	rec := slog.NewRecord(when, level, e.Message, 0)
	for _, key := range slices.Sorted(maps.Keys(e.Data)) {
		rec.AddAttrs(slog.Any(key, e.Data[key]))
	}
	return h.log.Handler().Handle(ctx, rec)
}

func logLevel(l logrus.Level) slog.Level {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		return slog.LevelError
	case logrus.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

// discard stands in for logrus' output: the hook has done the work.
type discard struct{}

func (discard) Write(p []byte) (int, error)          { return len(p), nil }
func (discard) Format(*logrus.Entry) ([]byte, error) { return nil, nil }
