package crdt

import "testing"

// TestTombstone has an old record come back to a replica that has forgotten the
// delete of the key.
func TestTombstone(t *testing.T) {
	for _, uid := range []string{"u", "00000000-0000-8000-8000-000000000001"} {
		value := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","uid":"` + uid + `"}}`)
		old := Put(nil, []byte("k"), value, Dot{1, 4}, 10, DescribeChange(nil, value, nil))
		grave := Tombstone(old, Vector{1: 4}, Dot{1, 4}, 1)
		if err := grave.Valid(); err != nil || !grave.Deleted {
			t.Fatalf("no tombstone: %v", err)
		}
		changed := Put(old, old.Key, append(value[:len(value)-1:len(value)-1], `,"data":{"a":"b"}}`...), Dot{2, 1}, 20, Change{})
		r, _, conflicts, err := Merge(grave, changed)
		if err != nil || !r.Deleted {
			t.Errorf("%s came back: %s, %v", uid, r.Value, err)
		}
		if seen := r.Seen(); len(seen) != 2 || !seen.Includes(changed.Seen()) {
			t.Errorf("the outcome includes %v", seen)
		}
		if len(conflicts) != 1 || conflicts[0].Rule != RuleDeleted {
			t.Errorf("the change is not listed: %v", conflicts)
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
