package crdt

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

var testTime = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestClock(t *testing.T) {
	at := func(d time.Duration) Stamp { return StampAt(testTime.Add(d)) }
	var c Clock
	tick := func(now, wall time.Duration, logical Stamp) {
		t.Helper()
		var s Stamp
		if c, s = c.Tick(testTime.Add(now)); s != at(wall)+logical {
			t.Errorf("tick at %v: got %s, want %s", now, s, at(wall)+logical)
		}
	}
	tick(0, 0, 0)
	tick(0, 0, 1) // same microsecond
	tick(time.Second, time.Second, 0)
	tick(-time.Hour, time.Second, 1) // the wall clock went back

	var err error
	if c, err = c.Observe(testTime.Add(time.Second), at(2*time.Second), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	tick(time.Second, 2*time.Second, 1) // after what was seen
	if got := c.Ahead(testTime.Add(time.Second)); got != time.Second {
		t.Errorf("clock is %v ahead, want 1s", got)
	}
	before := c
	if c, err = c.Observe(testTime, at(time.Minute), 5*time.Second); !errors.Is(err, ErrDrift) {
		t.Errorf("observe a minute ahead: %v, want ErrDrift", err)
	}
	if c != before {
		t.Errorf("a refused stamp moved the clock from %s to %s", before.High, c.High)
	}
	if c, err = c.Observe(testTime, at(-time.Hour), 0); err != nil || c != before {
		t.Errorf("an old stamp moved the clock to %s, %v", c.High, err)
	}
	if got := StampAt(time.Unix(-5, 0)); got != 0 {
		t.Errorf("a time before 1970 has stamp %d", got)
	}
}

func TestStampTime(t *testing.T) {
	if got := (StampAt(testTime) + 3).String(); got != "2026-07-01T12:00:00.000000Z+3" {
		t.Errorf("stamp prints as %s", got)
	}
}

func TestRevision(t *testing.T) {
	r := RevisionAt(testTime, 7)
	if r.Node() != 7 || !r.Time().Equal(testTime) {
		t.Errorf("revision %s", r)
	}
	if got := r.Next(testTime, 7); got != r+1<<16 {
		t.Errorf("next in the same tick is %s", got)
	}
	if got := r.Next(testTime.Add(-time.Hour), 7); got != r+1<<16 {
		t.Errorf("next after the clock went back is %s", got)
	}
	if got := r.Next(testTime.Add(time.Second), 9); !got.Time().Equal(testTime.Add(time.Second)) || got.Node() != 9 {
		t.Errorf("next a second later is %s", got)
	}
	if got := r.Add(time.Hour); !got.Time().Equal(testTime.Add(time.Hour)) || got.Node() != 7 {
		t.Errorf("an hour later is %s", got)
	}
	for _, far := range []time.Time{time.Unix(0, 0), time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got := RevisionAt(far, 0xffff); got < 0 {
			t.Errorf("revision at %v is negative", far)
		}
	}
}

func TestRevisionsIncrease(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	now, last := testTime, Revision(0)
	for range 10000 {
		now = now.Add(time.Duration(rng.IntN(2000)-900) * time.Microsecond)
		next := last.Next(now, NodeNumber(rng.IntN(3)))
		if next <= last {
			t.Fatalf("revision %s follows %s", next, last)
		}
		last = next
	}
}
