package crdt

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var onlyToken = regexp.MustCompile(`only-[0-9a-f]+`)

// news returns the tokens that are nobody else's in the value of r, but for
// those in bookkeeping.
func news(r *Record) map[string]bool {
	all := map[string]bool{}
	if r.Deleted || (&life{value: r.Value}).finished() {
		return all // its writer left it at the end of its deletion
	}
	n := parseObject(r.Value)
	goes := append([]string{"metadata.creationTimestamp", "metadata.generation", "spec.nodeName", "spec.volumeName", "spec.claimRef"}, withDeletion...)
	for _, place := range goes {
		parent, name, ok := strings.Cut(place, ".")
		if at := n.get(parent); ok && at != nil && at.kind == object {
			at.set(name, nil)
		}
	}
	for _, token := range onlyToken.FindAllString(string(n.append(nil)), -1) {
		all[token] = true
	}
	return all
}

// TestNothingIsLostSilently lets two sides of a cut write what nobody else
// writes. After they meet, all of it is in the object, or in a conflict.
func TestNothingIsLostSilently(t *testing.T) {
	objects := sampleObjects(t)
	names := slices.Sorted(maps.Keys(objects))
	types := newKinds(t, objects["customresourcedefinition-shops.example.com"])
	kept, lost := 0, 0
	for i := range histories(t, 200) {
		rng := rand.New(rand.NewPCG(uint64(i), 3))
		name := names[i%len(names)]
		a, b := &peer{origin: 1, schema: types}, &peer{origin: 2, schema: types}
		w := &world{t: t, rng: rng, now: 1 << 40}
		w.put(a, objects[name])
		w.merge(b, a.held)
		for range 1 + rng.IntN(6) {
			p := []*peer{a, b}[rng.IntN(2)]
			switch {
			case rng.IntN(12) == 0:
				w.delete(p)
			case p.held.Deleted:
				w.put(p, rename(rng, objects[name]))
			default:
				w.put(p, mutate(rng, p.held.Value))
			}
		}
		joined, outcome, conflicts, err := Merge(a.held, b.held)
		if err != nil {
			t.Fatal(err)
		}
		if outcome != Merged {
			continue
		}
		var listed bytes.Buffer
		for _, c := range conflicts {
			fmt.Fprintf(&listed, "%s %s\n", c.Path, c.Lost)
		}
		there := news(joined)
		for _, p := range []*peer{a, b} {
			for token := range news(p.held) {
				switch {
				case there[token]:
					kept++
				case bytes.Contains(listed.Bytes(), []byte(token)):
					lost++
				default:
					t.Fatalf("history %d of %s: %s of %s is gone\n%s\n%s\n%s", i, name, token, p.origin, p.held.Value, joined.Value, listed.Bytes())
				}
			}
		}
	}
	if kept == 0 || lost == 0 {
		t.Errorf("%d writes stayed and %d were listed: the histories show nothing", kept, lost)
	}
}

// TestWriteToAHiddenObjectIsListed: two sides create one name; a third, which
// has seen the younger object only, writes to it after one side has hidden it.
// That write is not shown, so it is listed.
func TestWriteToAHiddenObjectIsListed(t *testing.T) {
	key := []byte("/registry/configmaps/default/c")
	object := func(uid, token string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":%q},"data":{"a":%q}}`, uid, token)
	}
	older := Put(nil, key, object("old", "one"), Dot{1, 1}, 10, Change{})
	younger := Put(nil, key, object("young", "two"), Dot{2, 1}, 20, Change{})
	hiding, _, _, err := Merge(older, younger)
	if err != nil {
		t.Fatal(err)
	}
	late := Put(younger, key, object("young", "three"), Dot{3, 1}, 30, DescribeChange(younger.Value, object("young", "three"), nil))
	for _, pair := range [][2]*Record{{hiding, late}, {late, hiding}} {
		_, outcome, conflicts, err := Merge(pair[0], pair[1])
		if err != nil || outcome != Merged || len(conflicts) != 1 || !bytes.Contains(conflicts[0].Lost, []byte("three")) {
			t.Errorf("%v, %+v, %v", outcome, conflicts, err)
		}
	}
	// Nothing new, nothing listed.
	if _, _, conflicts, err := Merge(hiding, older); err != nil || len(conflicts) > 0 {
		t.Errorf("%+v, %v", conflicts, err)
	}
}
