package main

import "testing"

func TestGCPace(t *testing.T) {
	var p gcPace
	looks := func(collections uint64, n int) {
		for range n {
			p.next(collections)
		}
	}
	steps := []struct {
		what        string
		collections uint64
		looks       int
		busy        bool
	}{
		{"an idle node", 0, 30, false},
		{"a collection now and then", 1, 1, false},
		{"and quiet", 0, 10, false},
		{"many", 2, 1, true},
		{"fewer, since there may be more garbage", 1, 50, true},
		{"none", 0, 9, true},
		{"none for long", 0, 11, false},
	}
	for _, s := range steps {
		looks(s.collections, s.looks)
		if p.busy != s.busy {
			t.Errorf("after %d looks at %s: busy %v", s.looks, s.what, p.busy)
		}
	}
}

func TestGCPercent(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		what         string
		busy         bool
		live, memory uint64
		want         int
	}{
		{"idle", false, 100 * mb, 16384 * mb, 50},
		{"busy", true, 100 * mb, 16384 * mb, 200},
		{"busy on a small machine", true, 128 * mb, 1024 * mb, 150},
		{"busy with a large heap", true, 1024 * mb, 4096 * mb, 100},
		{"busy with nothing known", true, 100 * mb, 0, 50},
		{"busy with nothing in use", true, 0, 1024 * mb, 200},
	} {
		if got := (&gcPace{busy: c.busy}).percent(c.live, c.memory); got != c.want {
			t.Errorf("%s: %d %%, want %d", c.what, got, c.want)
		}
	}
}
