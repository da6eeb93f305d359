package mergetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mootkube/moot/gossip/crdt"
)

func samples(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("../../../gossip/crdt/testdata/objects/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no objects: %v", err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = data
	}
	return all
}

func kindOf(t testing.TB, value []byte) string {
	t.Helper()
	var obj struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(value, &obj); err != nil {
		t.Fatal(err)
	}
	return obj.Kind
}

type replica struct {
	origin crdt.Origin
	seq    uint64
	held   *crdt.Record
}

type history struct {
	t     *testing.T
	rng   *rand.Rand
	rules rules
	now   crdt.Stamp
	log   []string
	all   []*replica
	types crdt.Schema
	edits int
}

func (h *history) put(r *replica, value []byte) {
	var held []byte
	if r.held != nil {
		held = r.held.Value
	}
	r.seq++
	h.now += crdt.Stamp(h.rng.IntN(3))
	r.held = crdt.Put(r.held, []byte("k"), value, crdt.Dot{Origin: r.origin, Seq: r.seq}, h.now, crdt.DescribeChange(held, value, h.types))
}

// edit changes the object at one replica in a way the API server would take.
func (h *history) edit(r *replica) {
	for range 4 {
		value, what := change(h.t, h.rng, r.held.Value)
		if bytes.Equal(value, r.held.Value) || validate(h.t, h.rules, value) != nil {
			continue
		}
		h.log = append(h.log, fmt.Sprintf("%d: %s", r.origin, what))
		h.put(r, value)
		h.edits++
		return
	}
}

func (h *history) merge(to, from *replica) {
	h.t.Helper()
	r, outcome, _, err := crdt.Merge(to.held, from.held)
	if err != nil {
		h.t.Fatal(err)
	}
	to.held = r
	if outcome != crdt.Merged || r.Deleted {
		return
	}
	h.log = append(h.log, fmt.Sprintf("%d takes in what %d has", to.origin, from.origin))
	if err := validate(h.t, h.rules, r.Value); err != nil {
		h.t.Fatalf("a merge is not valid: %v\n%s\n%s", err, strings.Join(h.log, "\n"), r.Value)
	}
}

// TestMergesAreValid lets three replicas change an object as the API server
// allows and join what they have: every outcome is one that it allows as well.
func TestMergesAreValid(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("MOOT_HISTORIES"))
	if err != nil {
		count = 30
	}
	objects := samples(t)
	all := kinds(t, objects)
	custom, err := crdt.ReadCRD(objects[shopDefinition])
	if err != nil {
		t.Fatal(err)
	}
	types := crdt.Schemas{crdt.Builtin(), custom}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		r, ok := all[kindOf(t, objects[name])]
		if !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			edits := 0
			for i := range count {
				edits += run(t, rand.New(rand.NewPCG(uint64(i), 7)), r, objects[name], types)
			}
			if edits < count {
				t.Errorf("only %d changes in %d histories were valid", edits, count)
			}
		})
	}
}

func run(t *testing.T, rng *rand.Rand, r rules, base []byte, types crdt.Schema) int {
	t.Helper()
	h := &history{t: t, rng: rng, rules: r, now: 1 << 30, types: types}
	for i := range 3 {
		h.all = append(h.all, &replica{origin: crdt.Origin(i + 1)})
	}
	h.put(h.all[0], base)
	h.all[1].held, h.all[2].held = h.all[0].held, h.all[0].held
	for range 12 {
		a, b := h.all[rng.IntN(3)], h.all[rng.IntN(3)]
		if a.held.Deleted {
			break
		}
		if rng.IntN(4) == 0 {
			h.merge(a, b)
		} else {
			h.edit(a)
		}
	}
	for range 2 {
		for _, a := range h.all {
			for _, b := range h.all {
				h.merge(a, b)
			}
		}
	}
	want, err := crdt.AppendState(nil, h.all[0].held)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range h.all[1:] {
		if got, err := crdt.AppendState(nil, a.held); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("replicas differ: %v\n%s", err, strings.Join(h.log, "\n"))
		}
	}
	return h.edits
}
