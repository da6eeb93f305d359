package main

import (
	"strings"
	"testing"

	"github.com/mootkube/moot/node"
)

func TestPrintConflicts(t *testing.T) {
	word := node.Conflict{Key: "/registry/configmaps/d/c", Path: ".data.word"}
	status := node.Conflict{Key: "/registry/pods/d/p", Path: ".status", Observed: true}
	for name, c := range map[string]struct {
		list []node.Conflict
		all  bool
		want []string // what each line begins with
	}{
		"none":          {nil, false, []string{"no conflicts"}},
		"only observed": {[]node.Conflict{status, status}, false, []string{"no conflicts", "and 2 of what"}},
		"left out":      {[]node.Conflict{status, word}, false, []string{"WRITTEN", "0001-01-01", "and 1 of what"}},
		"all":           {[]node.Conflict{status, word}, true, []string{"WRITTEN", "0001-01-01", "0001-01-01"}},
	} {
		var out strings.Builder
		if err := printConflicts(&out, c.list, c.all); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%s: %q", name, lines)
			continue
		}
		for i := range lines {
			if !strings.HasPrefix(lines[i], c.want[i]) {
				t.Errorf("%s: line %q, want %q", name, lines[i], c.want[i])
			}
		}
	}
}
