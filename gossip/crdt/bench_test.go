package crdt

import (
	"bytes"
	"testing"
)

// podUpdate is a pod and the same after a report of its kubelet.
func podUpdate(tb testing.TB) (held, value []byte) {
	tb.Helper()
	pod := parseObject(sampleObjects(tb)["pod-web-0"])
	held = pod.append(nil)
	pod.at("status", "conditions").items[2].set("status", quoted("False"))
	pod.at("status", "containerStatuses").items[0].set("ready", parse([]byte("false")))
	return held, pod.append(nil)
}

func BenchmarkDescribeChange(b *testing.B) {
	held, value := podUpdate(b)
	schema := Builtin()
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		DescribeChange(held, value, schema)
	}
}

func BenchmarkPut(b *testing.B) {
	held, value := podUpdate(b)
	ch := DescribeChange(held, value, Builtin())
	r := Put(nil, []byte("k"), held, Dot{1, 1}, 1, Change{})
	for i := range 8 {
		o := Origin(i%3 + 1)
		r = Put(r, []byte("k"), value, Dot{o, uint64(i + 2)}, 1, ch)
	}
	b.ReportAllocs()
	for b.Loop() {
		Put(r, []byte("k"), value, Dot{1, 100}, 100, ch)
	}
	b.ReportMetric(float64(len(r.Meta)), "metabytes")
}

// BenchmarkMergeFast is what a replica does with a change that follows on what
// it holds: the values are not looked at.
func BenchmarkMergeFast(b *testing.B) {
	held, value := podUpdate(b)
	first := Put(nil, []byte("k"), held, Dot{1, 1}, 1, Change{})
	next := Put(first, []byte("k"), value, Dot{2, 1}, 2, DescribeChange(held, value, Builtin()))
	b.ReportAllocs()
	for b.Loop() {
		if _, outcome, _, err := Merge(first, next); outcome != Replaced || err != nil {
			b.Fatal(outcome, err)
		}
	}
}

func BenchmarkMergeSlow(b *testing.B) {
	held, value := podUpdate(b)
	schema := Builtin()
	first := Put(nil, []byte("k"), held, Dot{1, 1}, 1, Change{})
	left := Put(first, []byte("k"), value, Dot{2, 1}, 2, DescribeChange(held, value, schema))
	label := bytes.Replace(held, []byte(`"tier":"front"`), []byte(`"tier":"back"`), 1)
	right := Put(first, []byte("k"), label, Dot{3, 1}, 3, DescribeChange(held, label, schema))
	b.ReportAllocs()
	for b.Loop() {
		if _, outcome, _, err := Merge(left, right); outcome != Merged || err != nil {
			b.Fatal(outcome, err)
		}
	}
}

// TestMergeFastPath holds what the replicas count on: a change that follows on
// what is held costs no look at the values.
func TestMergeFastPath(t *testing.T) {
	held, value := podUpdate(t)
	first := Put(nil, []byte("k"), held, Dot{1, 1}, 1, Change{})
	next := Put(first, []byte("k"), value, Dot{2, 1}, 2, DescribeChange(held, value, Builtin()))
	if n := testing.AllocsPerRun(100, func() {
		if _, outcome, _, err := Merge(first, next); outcome != Replaced || err != nil {
			t.Fatal(outcome, err)
		}
		if _, outcome, _, err := Merge(next, first); outcome != Kept || err != nil {
			t.Fatal(outcome, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if len(next.Meta) > 400 {
		t.Errorf("one report of a kubelet leaves %d bytes", len(next.Meta))
	}
}
