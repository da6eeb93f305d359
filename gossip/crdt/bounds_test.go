package crdt

import (
	"fmt"
	"testing"
)

// TestWritesAreBounded has many writers change ever other places of one object:
// what the record keeps of them is bounded, and nothing is lost between
// replicas that hear of each other.
func TestWritesAreBounded(t *testing.T) {
	value := func(n int) []byte {
		data := &node{kind: object}
		for i := range n {
			data.set(fmt.Sprintf("key%d", i), quoted("v"))
		}
		obj := parse([]byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"u","name":"x"}}`))
		obj.set("data", data)
		return obj.append(nil)
	}
	r := Put(nil, []byte("k"), value(0), Dot{1, 1}, 1, Change{})
	for i := range 200 {
		r = Put(r, r.Key, value(i+1), Dot{Origin(i%50 + 1), uint64(i + 2)}, 1, DescribeChange(r.Value, value(i+1), nil))
	}
	s, err := decodeState(r)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.lives[0].claims.tags()); n > maxWrites+1 {
		t.Errorf("%d writes are kept", n)
	}
	side := Put(r, r.Key, value(201), Dot{99, 1}, 1, DescribeChange(r.Value, value(201), nil))
	other := Put(r, r.Key, value(199), Dot{98, 1}, 1, DescribeChange(r.Value, value(199), nil))
	joined, outcome, conflicts, err := Merge(side, other)
	if err != nil || outcome != Merged || len(conflicts) > 0 {
		t.Fatalf("%s, %v, %v", outcome, conflicts, err)
	}
	n := parseObject(joined.Value).get("data")
	if len(n.members) != 200 || n.get("key199") != nil || n.get("key200") == nil {
		t.Errorf("%d keys are left", len(n.members))
	}
}

// TestPlacesAreBounded has one writer put in and take out places without end:
// the record does not remember them all.
func TestPlacesAreBounded(t *testing.T) {
	value := func(n int) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"u","name":"x","annotations":{"a%d":"v"}}}`, n)
	}
	r := Put(nil, []byte("k"), value(0), Dot{1, 1}, 1, Change{})
	largest := 0
	for i := range 2 * maxClaims {
		r = Put(r, r.Key, value(i+1), Dot{1, uint64(i + 2)}, 1, DescribeChange(r.Value, value(i+1), nil))
		largest = max(largest, len(r.Meta))
	}
	if largest > 40*maxClaims {
		t.Errorf("the state grew to %d bytes", largest)
	}
	if err := r.Valid(); err != nil {
		t.Error(err)
	}
}

func TestStampFollowsWhatIsHeld(t *testing.T) {
	a := Put(nil, []byte("k"), []byte("x"), Dot{1, 1}, 100, Change{})
	b := Put(a, a.Key, []byte("y"), Dot{2, 1}, 5, Change{})
	if b.Stamp != 101 {
		t.Errorf("a write over stamp 100 has stamp %d", b.Stamp)
	}
	if c := Delete(b, a.Key, Dot{3, 1}, 7); c.Stamp != 102 {
		t.Errorf("a delete over stamp 101 has stamp %d", c.Stamp)
	}
}

func TestVector(t *testing.T) {
	v := Vector{}
	v.Note(Dot{1, 5})
	v.Note(Dot{1, 3})
	v.Join(Vector{2: 7})
	if !v.Covers(Dot{1, 5}) || v.Covers(Dot{1, 6}) || !v.Covers(Dot{}) || v.Covers(Dot{3, 1}) {
		t.Errorf("%v covers the wrong changes", v)
	}
	if !v.Includes(Vector{1: 5}) || v.Includes(Vector{3: 1}) || !v.Includes(nil) {
		t.Errorf("%v includes the wrong vectors", v)
	}
	w := v.Clone()
	w.Note(Dot{1, 9})
	if v.Covers(Dot{1, 9}) || Vector(nil).Clone() == nil {
		t.Error("a clone is not one")
	}
}
