package node

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestUpstreamDoesNotAlarmWithoutReason(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(upstreamHandler{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})})
	log.Info("quiet")
	log.Error(staleEndpoints + ", apiserver didn't exit successfully previously")
	log.Error("a real one")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "a real one") {
		t.Errorf("logged %q", got)
	}
}
