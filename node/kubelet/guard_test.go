package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clockedGuard is a guard as a new process would open it, at a time.
func clockedGuard(file, print string, now *time.Time) *Guard {
	g := NewGuard(file, print)
	g.now = func() time.Time { return *now }
	return g
}

func TestGuardRefusesAfterCrashes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "starts")
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for i := range guardTries {
		g := clockedGuard(file, "a", &now)
		if err := g.Begin(); err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		g.Note(fmt.Sprintf("reason %d", i)) // then the process dies
		now = now.Add(time.Minute)
	}
	err := clockedGuard(file, "a", &now).Begin()
	var loop *CrashLoopError
	if !errors.As(err, &loop) || !IsCrashLoop(fmt.Errorf("kubelet: %w", err)) {
		t.Fatalf("start after crashes: %v", err)
	}
	if loop.Deaths != guardTries || loop.Reason != "reason 2" || !strings.Contains(err.Error(), file) {
		t.Errorf("refusal %+v: %v", loop, err)
	}
	if err := clockedGuard(file, "b", &now).Begin(); err != nil {
		t.Errorf("other settings are refused: %v", err)
	}
}

func TestGuardForgets(t *testing.T) {
	crash := func(t *testing.T, file string, now *time.Time) {
		t.Helper()
		for range guardTries {
			if err := clockedGuard(file, "a", now).Begin(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("after the window", func(t *testing.T) {
		file, now := filepath.Join(t.TempDir(), "starts"), time.Now()
		crash(t, file, &now)
		now = now.Add(guardWindow)
		if err := clockedGuard(file, "a", &now).Begin(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("when the clock was set back", func(t *testing.T) {
		file, now := filepath.Join(t.TempDir(), "starts"), time.Now()
		crash(t, file, &now)
		now = now.Add(-time.Hour)
		if err := clockedGuard(file, "a", &now).Begin(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("when the file is damaged", func(t *testing.T) {
		file, now := filepath.Join(t.TempDir(), "starts"), time.Now()
		crash(t, file, &now)
		if err := os.WriteFile(file, []byte(`{"starts":[`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := clockedGuard(file, "a", &now).Begin(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("starts that got ready", func(t *testing.T) {
		file, now := filepath.Join(t.TempDir(), "starts"), time.Now()
		for range 2 * guardTries {
			g := clockedGuard(file, "a", &now)
			if err := g.Begin(); err != nil {
				t.Fatal(err)
			}
			g.Note("an error on the way")
			for range 2 {
				if err := g.Settle(); err != nil {
					t.Fatal(err)
				}
			}
			g.Note("an error while it runs")
		}
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("marks left behind: %v", err)
		}
	})
}

func TestGuardReasonIsOfTheseStarts(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	state := guardState{Fingerprint: "a", Reason: "an old story", ReasonAt: now.Add(-time.Hour)}
	for i := range guardTries {
		state.Starts = append(state.Starts, aStart{At: now.Add(time.Duration(i-guardTries) * time.Second)})
	}
	if loop := decideStart(state, "a", now); loop == nil || loop.Reason != "" {
		t.Fatalf("refusal %+v, want one without the old reason", loop)
	}
}
