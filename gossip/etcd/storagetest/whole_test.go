package storagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSuiteIsWhole holds the table of tests to what upstream runs on its own
// store, in the version this module requires.
func TestSuiteIsWhole(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", "k8s.io/apiserver/pkg/storage/etcd3").Output()
	if err != nil {
		t.Fatalf("find upstream's sources: %v", err)
	}
	upstream := calls(t, filepath.Join(strings.TrimSpace(string(out)), "*_test.go"))
	here := calls(t, "suite_test.go")
	for _, name := range upstream {
		if !slices.Contains(here, name) {
			t.Errorf("upstream runs %s on its store, this package does not", name)
		}
	}
	if len(upstream) < 50 {
		t.Errorf("found only %d tests of upstream", len(upstream))
	}
}

// calls lists the functions of the suite, but for benchmarks, that files call.
func calls(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`storagetesting\.(Run[A-Za-z]+)`)
	var names []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(source), -1) {
			if !strings.HasPrefix(m[1], "RunBenchmark") {
				names = append(names, m[1])
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
