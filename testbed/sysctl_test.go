package testbed

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Of two clusters on one machine the last to go puts the settings back to
// what they were before the first, whatever the second has seen.
func TestSysctlsOfTwoClusters(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(filepath.Join(sysctlDir, sysctlFile)); !errors.Is(err, os.ErrNotExist) {
		t.Skip("another cluster is up on this machine")
	}
	const key = "vm.overcommit_memory"
	read := func() string {
		b, err := os.ReadFile(sysctlPath(key))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := read()
	t.Cleanup(func() {
		if err := os.WriteFile(sysctlPath(key), []byte(before), 0o644); err != nil {
			t.Error(err)
		}
	})
	first := up(t, 1, nil)
	changed := "1"
	if before == "1" {
		changed = "0"
	}
	if err := os.WriteFile(sysctlPath(key), []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	second := up(t, 1, nil)
	if err := first.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != changed {
		t.Errorf("with one cluster left %s is %s, want %s", key, got, changed)
	}
	killed := filepath.Join(sysctlDir, "."+sysctlFile+"-123") // of a process that was, while it wrote
	if err := os.WriteFile(killed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != before {
		t.Errorf("with no cluster left %s is %s, was %s", key, got, before)
	}
	if _, err := os.Stat(sysctlDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is still there: %v", err)
	}
}
