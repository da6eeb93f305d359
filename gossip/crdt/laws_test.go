package crdt

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
)

// sampleObjects returns the objects in testdata by file name.
func sampleObjects(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/objects/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no objects: %v", err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if parseObject(data) == nil {
			t.Fatalf("%s is no object", file)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = data
	}
	return all
}

// histories is how many random histories a property is tried on.
func histories(t *testing.T, usual int) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("MOOT_HISTORIES"))
	if err != nil {
		return usual
	}
	return n
}

// peer is one replica of one key.
type peer struct {
	origin Origin
	seq    uint64
	skew   Stamp
	schema Schema
	held   *Record
}

func (p *peer) next() Dot {
	p.seq++
	return Dot{Origin: p.origin, Seq: p.seq}
}

// world is a number of replicas of one key, and all the states they were in.
type world struct {
	t      testing.TB
	rng    *rand.Rand
	now    Stamp
	seed   []byte
	peers  []*peer
	states []*Record
}

func newWorld(t testing.TB, rng *rand.Rand, seed []byte, schemas ...Schema) *world {
	w := &world{t: t, rng: rng, now: 1 << 40, seed: seed}
	for i, s := range schemas {
		w.peers = append(w.peers, &peer{origin: Origin(i + 1), skew: Stamp(rng.IntN(3)) * 5, schema: s})
	}
	if rng.IntN(3) == 0 {
		// Every replica makes the object, with one UID.
		n := parseObject(seed)
		n.get("metadata").set("uid", quoted("00000000-0000-8000-8000-000000000009"))
		seed = n.append(nil)
		for _, p := range w.peers {
			w.put(p, seed)
		}
		return w
	}
	w.put(w.peers[0], seed)
	for _, p := range w.peers[1:] {
		if rng.IntN(5) > 0 {
			w.merge(p, w.peers[0].held)
		}
	}
	return w
}

func (w *world) keep(p *peer, r *Record) {
	w.t.Helper()
	full := *r
	full.Mod = 1 << 20
	if !r.Deleted {
		full.Create, full.Version = full.Mod, 1
	}
	again, err := DecodeRecord(AppendRecord(nil, &full))
	if err != nil {
		w.t.Fatalf("a record does not survive its encoding: %v", err)
	}
	if !bytes.Equal(w.bytes(again), w.bytes(r)) {
		w.t.Fatal("a record is another after its encoding")
	}
	p.held = r
	w.states = append(w.states, r)
}

func (w *world) put(p *peer, value []byte) {
	w.t.Helper()
	var held []byte
	if p.held != nil {
		held = p.held.Value
	}
	ch := DescribeChange(held, value, p.schema)
	if w.rng.IntN(20) == 0 {
		ch = Change{}
	}
	w.now += Stamp(w.rng.IntN(3))
	w.keep(p, Put(p.held, []byte("k"), value, p.next(), w.now+p.skew, ch))
	if got := p.held.Value; !bytes.Equal(got, value) {
		w.t.Fatalf("put kept %s of %s", got, value)
	}
}

func (w *world) delete(p *peer) {
	w.now += Stamp(w.rng.IntN(3))
	w.keep(p, Delete(p.held, []byte("k"), p.next(), w.now+p.skew))
}

func (w *world) merge(p *peer, came *Record) {
	w.t.Helper()
	r, outcome, _, err := Merge(p.held, came)
	if err != nil {
		w.t.Fatal(err)
	}
	switch {
	case outcome == Kept && r != p.held, outcome == Replaced && r != came, outcome == Merged && !r.Joined():
		w.t.Fatalf("outcome %s does not fit", outcome)
	}
	if p.held != nil && !r.Covers(p.held.Dot) || !r.Covers(came.Dot) {
		w.t.Fatal("the join covers not both")
	}
	w.keep(p, r)
}

func (w *world) join(a, b *Record) *Record {
	w.t.Helper()
	r, _, _, err := Merge(a, b)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) bytes(r *Record) []byte {
	w.t.Helper()
	b, err := AppendState(nil, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// step lets one replica do something.
func (w *world) step() {
	w.t.Helper()
	p := w.peers[w.rng.IntN(len(w.peers))]
	alive := p.held != nil && !p.held.Deleted
	switch n := w.rng.IntN(20); {
	case n == 0 && p.held != nil:
		w.delete(p)
	case n < 10 && alive:
		w.put(p, mutate(w.rng, p.held.Value))
	case n < 3 || n == 10 && alive:
		w.put(p, rename(w.rng, w.seed))
	case w.rng.IntN(4) == 0:
		w.merge(p, w.states[w.rng.IntN(len(w.states))])
	default:
		if q := w.peers[w.rng.IntN(len(w.peers))]; q.held != nil {
			w.merge(p, q.held)
		}
	}
}

// rename gives an object another UID, of few, so that some are born twice.
func rename(rng *rand.Rand, value []byte) []byte {
	n := parseObject(value)
	if meta := n.get("metadata"); meta != nil {
		uid := fmt.Sprintf("other-%d", rng.IntN(3))
		if rng.IntN(2) == 0 {
			uid = fmt.Sprintf("00000000-0000-8000-8000-00000000000%d", rng.IntN(4))
			if rng.IntN(2) == 0 {
				n = parseObject(mutate(rng, n.append(nil)))
			}
			meta = n.get("metadata")
		}
		if meta != nil && meta.kind == object {
			meta.set("uid", quoted(uid))
		}
	}
	return n.append(nil)
}

// token returns a string that others may have come to as well, or one that is
// nobody else's.
func token(rng *rand.Rand) *node {
	if rng.IntN(2) == 0 {
		return quoted(fmt.Sprintf("v%d", rng.IntN(4)))
	}
	return quoted(fmt.Sprintf("only-%x", rng.Uint64()))
}

// mutate changes an object in one to three places.
func mutate(rng *rand.Rand, value []byte) []byte {
	n := parseObject(value)
	for range 1 + rng.IntN(3) {
		mutateNode(rng, n, 0)
	}
	if meta := n.get("metadata"); meta != nil && meta.kind == object {
		switch rng.IntN(12) {
		case 0:
			meta.set("deletionTimestamp", quoted("2026-07-01T13:00:00Z"))
		case 1:
			meta.set("finalizers", nil)
		case 2, 3, 4, 5:
			mutateManagers(rng, n, meta)
		}
	}
	if meta := n.get("metadata"); meta != nil && rng.IntN(2) == 0 {
		meta.set("generation", &node{kind: scalar, raw: strconv.AppendInt(nil, meta.get("generation").integer()+1, 10)})
	}
	if rng.IntN(2) == 0 {
		return n.append(nil)
	}
	var pretty bytes.Buffer
	_ = json.Indent(&pretty, n.append(nil), "", " ")
	return pretty.Bytes()
}

// mutateManagers lets a manager come, go, or own something else.
func mutateManagers(rng *rand.Rand, n, meta *node) {
	entries := &node{kind: list}
	if held := meta.get("managedFields"); held != nil && held.kind == list {
		entries.items = slices.Clone(held.items)
	}
	meta.set("managedFields", entries)
	if len(entries.items) > 0 && rng.IntN(6) == 0 {
		i := rng.IntN(len(entries.items))
		entries.items = slices.Delete(entries.items, i, i+1)
		return
	}
	name := fmt.Sprintf("m%d", rng.IntN(3))
	i := slices.IndexFunc(entries.items, func(e *node) bool { return e.get("manager").text() == name })
	if i < 0 {
		i = len(entries.items)
		e := parse([]byte(`{"operation":"Update","fieldsType":"FieldsV1","fieldsV1":{}}`))
		e.set("manager", quoted(name))
		e.set("apiVersion", quoted(n.get("apiVersion").text()))
		entries.items = append(entries.items, e)
	}
	entries.items[i] = parse(entries.items[i].append(nil))
	fields := entries.items[i].get("fieldsV1")
	// Own or disown what is on some way into the object.
	for at := n; at != nil && fields != nil; {
		var step string
		switch {
		case at.kind == object && len(at.members) > 0:
			m := at.members[rng.IntN(len(at.members))]
			step, at = "f:"+m.name, m.node
		case at.kind == list && len(at.items) > 0:
			item := at.items[rng.IntN(len(at.items))]
			if item.get("name") == nil {
				return
			}
			step, at = `k:{"name":`+string(item.get("name").append(nil))+`}`, item
		default:
			return
		}
		if held := fields.get(step); held != nil && rng.IntN(4) == 0 {
			fields.set(step, nil)
			return
		} else if held == nil {
			fields.set(step, &node{kind: object})
		}
		fields = fields.get(step)
		if rng.IntN(3) == 0 {
			return
		}
	}
}

func mutateNode(rng *rand.Rand, n *node, depth int) {
	switch {
	case n.kind == list && len(n.items) > 0 && rng.IntN(4) > 0:
		i := rng.IntN(len(n.items))
		switch item := n.items[i]; rng.IntN(8) {
		case 0:
			n.items = slices.Delete(slices.Clone(n.items), i, i+1)
		case 1:
			rng.Shuffle(len(n.items), func(a, b int) { n.items[a], n.items[b] = n.items[b], n.items[a] })
		case 2, 3:
			twin := parse(item.append(nil))
			mutateNode(rng, twin, depth+1)
			n.items = slices.Insert(n.items, rng.IntN(len(n.items)+1), twin)
		default:
			mutateNode(rng, item, depth+1)
		}
	case n.kind == object && len(n.members) > 0 && (depth < 2 || rng.IntN(5) > 0):
		m := n.members[rng.IntN(len(n.members))]
		switch {
		case m.name == "managedFields" && rng.IntN(20) > 0:
		case depth == 0 && (m.name == "kind" || m.name == "apiVersion") && rng.IntN(10) > 0, m.name == "uid":
		case depth > 0 && rng.IntN(8) == 0:
			n.set(m.name, nil)
		case depth > 0 && rng.IntN(8) == 0:
			n.set(fmt.Sprintf("new%d", rng.IntN(3)), parse(m.node.append(nil)))
		case depth > 1 && rng.IntN(20) == 0:
			n.set(m.name, parse([]byte([]string{"null", "{}", "[]", "7", `"other"`}[rng.IntN(5)])))
		default:
			mutateNode(rng, m.node, depth+1)
		}
	case n.kind == scalar:
		n.raw = token(rng).raw
	case n.kind == list:
		n.items = append(n.items, token(rng))
	default:
		n.set(fmt.Sprintf("new%d", rng.IntN(3)), token(rng))
	}
}

func (w *world) checkLaws() {
	w.t.Helper()
	anyState := func() *Record { return w.states[w.rng.IntN(len(w.states))] }
	for range 30 {
		a, b, c := anyState(), anyState(), anyState()
		ab := w.join(a, b)
		if !bytes.Equal(w.bytes(ab), w.bytes(w.join(b, a))) {
			w.t.Error("not commutative")
		}
		if x := w.join(a, a); !bytes.Equal(w.bytes(x), w.bytes(a)) {
			w.t.Error("not idempotent")
		}
		if x := w.join(ab, b); !bytes.Equal(w.bytes(x), w.bytes(ab)) {
			w.t.Error("a join does not absorb what is in it")
		}
		left, right := w.bytes(w.join(ab, c)), w.bytes(w.join(a, w.join(b, c)))
		if !bytes.Equal(left, right) {
			w.t.Errorf("not associative\n%q\n%q", left, right)
		}
	}
}

// converge merges all replicas in a random order until none changes.
func (w *world) converge() {
	w.t.Helper()
	for changed := true; changed; {
		changed = false
		for _, i := range w.rng.Perm(len(w.peers)) {
			for _, j := range w.rng.Perm(len(w.peers)) {
				p, q := w.peers[i], w.peers[j]
				if q.held == nil || p.held != nil && bytes.Equal(w.bytes(p.held), w.bytes(q.held)) {
					continue
				}
				before := p.held
				w.merge(p, q.held)
				changed = changed || p.held != before
			}
		}
	}
	want := w.bytes(w.peers[0].held)
	for _, p := range w.peers {
		if got := w.bytes(p.held); !bytes.Equal(got, want) {
			w.t.Fatalf("replicas differ\n%q\n%q", got, want)
		}
	}
}

// anyKind is a schema that knows lists by their names only.
type anyKind struct{ root *Type }

func (s anyKind) Type(string, string) *Type { return s.root }

func newAnyKind() anyKind {
	one, anything := &Type{atomic: true}, &Type{}
	anything.elem = anything
	keyed := func(keys string) *Type { return &Type{form: formKeyed + keys, elem: anything} }
	anything.fields = map[string]*Type{
		"containers": keyed("name"), "env": keyed("name"), "ports": keyed("containerPort,protocol"),
		"volumes": {form: formKeyed + "name", elem: one}, "conditions": keyed("type"), "counters": keyed("name,zone"),
		"days": {form: formSet, elem: one}, "resources": one, "limits": {required: true, elem: anything},
	}
	root := &Type{elem: anything, fields: map[string]*Type{"metadata": objectMeta()}}
	return anyKind{root}
}

// olderCRD is the definition of Shop before its lists had types.
func olderCRD(crd []byte) []byte {
	n := parseObject(crd)
	var strip func(*node)
	strip = func(n *node) {
		n.members = slices.DeleteFunc(n.members, func(m member) bool {
			return strings.HasPrefix(m.name, "x-kubernetes-list") || strings.HasPrefix(m.name, "x-kubernetes-map") || m.name == "required"
		})
		for _, m := range n.members {
			strip(m.node)
		}
		for _, item := range n.items {
			strip(item)
		}
	}
	strip(n)
	return n.append(nil)
}

// newKinds returns the schema of the built-in kinds and of a custom one.
func newKinds(t testing.TB, crd []byte) Schema {
	t.Helper()
	custom, err := ReadCRD(crd)
	if err != nil {
		t.Fatal(err)
	}
	return Schemas{Builtin(), custom}
}

// TestLaws lets replicas put, delete, create again and merge, in many random
// histories over objects of many kinds. One replica has an older definition of
// the custom kind, or knows no kind at all.
func TestLaws(t *testing.T) {
	objects := sampleObjects(t)
	names := slices.Sorted(maps.Keys(objects))
	crd := objects["customresourcedefinition-shops.example.com"]
	newer, older, loose := newKinds(t, crd), newKinds(t, olderCRD(crd)), newAnyKind()
	for i := range histories(t, 124) {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		name := names[i%len(names)]
		schemas := []Schema{newer, newer, older, newer}
		if i/len(names)%2 == 1 {
			schemas = []Schema{loose, loose, nil, loose}
		}
		w := newWorld(t, rng, objects[name], schemas...)
		for range 10 + rng.IntN(30) {
			w.step()
		}
		w.checkLaws()
		w.converge()
		if t.Failed() {
			t.Fatalf("history %d of %s", i, name)
		}
	}
}
