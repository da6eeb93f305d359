package crdt

import (
	"bytes"
	"testing"
)

// TestRecall has an old record come back to a replica that has forgotten the
// delete of the key, and holds nothing, another object, or the delete of that.
func TestRecall(t *testing.T) {
	for _, uid := range []string{"u", "00000000-0000-8000-8000-000000000001"} {
		value := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","uid":"` + uid + `"}}`)
		old := Put(nil, []byte("k"), value, Dot{1, 4}, 10, DescribeChange(nil, value, nil))
		changed := Put(old, old.Key, append(value[:len(value)-1:len(value)-1], `,"data":{"a":"b"}}`...), Dot{2, 1}, 20, Change{})
		anew := Put(nil, old.Key, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"other","name":"x"}}`), Dot{3, 1}, 30, Change{})
		for name, held := range map[string]*Record{"nothing": nil, "another": anew, "deleted": Delete(anew, old.Key, Dot{3, 2}, 40)} {
			recalled := Recall(held, changed, Vector{1: 4})
			if err := recalled.Valid(); err != nil || recalled.Deleted != (held == nil || held.Deleted) {
				t.Fatalf("%s recalled: deleted %v, %v", name, recalled.Deleted, err)
			}
			r, _, conflicts, err := Merge(recalled, changed)
			if err != nil || r.UID == uid {
				t.Errorf("%s held: %s came back: %s, %v", name, uid, r.Value, err)
			}
			if held != nil && (r.Deleted != held.Deleted || !bytes.Equal(r.Value, held.Value)) {
				t.Errorf("%s held: %s became %s", name, held.Value, r.Value)
			}
			if seen := r.Seen(); !seen.Includes(changed.Seen()) || held != nil && !seen.Includes(held.Seen()) || seen[grave] != 0 {
				t.Errorf("%s held: the outcome includes %v", name, seen)
			}
			if len(conflicts) != 1 || conflicts[0].Rule != RuleDeleted {
				t.Errorf("%s held: the change is not listed: %v", name, conflicts)
			}
			// Where the object is still there, it goes.
			if back, _, _, err := Merge(changed, r); err != nil || !bytes.Equal(back.Value, r.Value) {
				t.Errorf("%s held: elsewhere it is %s, %v", name, back.Value, err)
			}
		}
	}
}

func TestInspect(t *testing.T) {
	a := Put(nil, []byte("k"), []byte("1"), Dot{1, 1}, 10, Change{})
	b := Put(a, a.Key, []byte("2"), Dot{2, 1}, 20, Change{})
	if b.Born() != 10 || b.Latest() != 20 || !b.Seen().Includes(Vector{1: 1, 2: 1}) {
		t.Errorf("born %d, latest %d, seen %v", b.Born(), b.Latest(), b.Seen())
	}
	gone := Delete(b, a.Key, Dot{1, 2}, 30)
	if gone.Born() != 30 || gone.Latest() != 30 || !gone.Covers(Dot{2, 1}) || gone.Covers(Dot{2, 2}) {
		t.Errorf("born %d, latest %d, seen %v", gone.Born(), gone.Latest(), gone.Seen())
	}
}
