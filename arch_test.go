// Package moot_test holds the architecture's import table over the code.
package moot_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mootkube/moot/"

// mayImport says, for each room, which of our other rooms it may import
// directly. Data and imports flow one way, down; see ARCHITECTURE.md.
var mayImport = map[string][]string{
	"cmd/moot":      {"node"},
	"cmd/moot-shim": {"node/net/host"},
	"cmd/testbed":   {"testbed"},
	"node":          {"sched", "ebpf", "gossip/etcd", "gossip/store", "gossip/crdt", "gossip", "node/net/host"},
	"node/net/host": {},
	"sched":         {},
	"ebpf":          {},
	"gossip/etcd":   {"gossip/store"},
	"gossip":        {"gossip/store", "gossip/crdt"},
	// Whole members, as the node puts them together.
	"gossip/etcd/bench": {"gossip/etcd", "gossip", "gossip/store", "gossip/crdt"},
	"gossip/store":      {"gossip/crdt"},
	"gossip/crdt":       {},
	"testbed":           {},
}

// onlyIn says which rooms alone may import an outside module.
var onlyIn = map[string][]string{
	"github.com/cilium/ebpf":              {"ebpf"},
	"github.com/containerd/containerd/v2": {"node/runtime", "cmd/moot-shim"},
	"github.com/hashicorp/serf":           {"gossip"},
	"github.com/hashicorp/memberlist":     {"gossip"},
	"github.com/cockroachdb/pebble/v2":    {"gossip/store"},
}

// without says which outside modules a room must not reach, even indirectly:
// what keeps its tests quick.
var without = map[string][]string{
	"gossip/crdt":  {"k8s.io/", "google.golang.org/grpc", "github.com/cockroachdb/pebble"},
	"gossip/store": {"k8s.io/kubernetes", "k8s.io/apiserver"},
	"testbed":      {"k8s.io/kubernetes"},
	"ebpf":         {"k8s.io/"},
	// Run several times for every pod.
	"cmd/moot-shim": {"k8s.io/client-go", "k8s.io/kubernetes"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestImportTable(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		room := roomOf(from)
		if room == "" {
			t.Errorf("%s is in no room of the import table", from)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, room, from, imp)
		}
		for _, bad := range without[room] {
			for _, dep := range p.Deps {
				if strings.HasPrefix(dep, bad) {
					t.Errorf("%s reaches %s; %s must build without %s", from, dep, room, bad)
					break
				}
			}
		}
	}
}

func checkImport(t *testing.T, room, from, imp string) {
	t.Helper()
	if to, ours := strings.CutPrefix(imp, module); ours {
		if target := roomOf(to); target != room && !slices.Contains(mayImport[room], target) {
			t.Errorf("%s imports %s: %s may import only %v", from, to, room, mayImport[room])
		}
		return
	}
	for outside, rooms := range onlyIn {
		if (imp == outside || strings.HasPrefix(imp, outside+"/")) && !containsPrefix(rooms, from) {
			t.Errorf("%s imports %s: only %v may", from, imp, rooms)
		}
	}
}

// roomOf is the longest room the package lies in.
func roomOf(path string) string {
	best := ""
	for room := range mayImport {
		if (path == room || strings.HasPrefix(path, room+"/")) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

func containsPrefix(rooms []string, path string) bool {
	for _, room := range rooms {
		if path == room || strings.HasPrefix(path, room+"/") {
			return true
		}
	}
	return false
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./cmd/...", "./node/...", "./gossip/...", "./sched/...", "./ebpf/...", "./testbed/...").Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}
