package store

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

var (
	peerOrigin = crdt.Origin(7)
	peerMemory = volatileOrigin | 7
)

// remote returns a record that a peer made.
func remote(key, value string, seq uint64, at time.Time) *crdt.Record {
	origin := peerOrigin
	if !classOf([]byte(key)).durable {
		origin = peerMemory
	}
	return crdt.Put(nil, []byte(key), []byte(value), crdt.Dot{Origin: origin, Seq: seq}, crdt.StampAt(at), crdt.Change{})
}

// TestClocksAfterAPowerLoss: machines that keep no time while they are off start at
// times hours apart, the same for all that they know. They exchange their changes,
// and still refuse those of a clock that is ahead of all.
func TestClocksAfterAPowerLoss(t *testing.T) {
	a, b := pair(t, func(cfg *Config) { cfg.MaxDrift = 5 * time.Minute })
	put(t, a.s, "/registry/x/before", "x")
	a.settle()
	for r, behind := range map[*replica]time.Duration{a: 10 * time.Minute, b: 3 * time.Hour} {
		r.cfg.Now = func() time.Time { return time.Now().Add(-behind) }
		r.restart()
	}
	put(t, a.s, "/registry/x/after", "x")
	put(t, b.s, "/registry/y/after", "x")
	a.settle()
	a.check()
	for what, ahead := range map[time.Duration]error{4 * time.Minute: nil, 6 * time.Minute: crdt.ErrDrift} {
		err := b.s.Apply(t.Context(), []*crdt.Record{remote(fmt.Sprint("/registry/z/", what), "x", uint64(what), time.Now().Add(what))}, nil)
		if !errors.Is(err, ahead) {
			t.Errorf("a change of a clock that is %v ahead: %v, want %v", what, err, ahead)
		}
	}
}

// TestClockPutRight: a machine starts with a clock that runs by another time zone,
// and a time server puts it right, or all do. What they write goes everywhere all
// the while, and of two edits the later one stays.
func TestClockPutRight(t *testing.T) {
	for name, wrong := range map[string][]time.Duration{
		"one":  {14 * time.Hour, 0},
		"both": {2 * time.Hour, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var ahead [2]atomic.Int64
			a, b := pair(t, nil)
			edits := 0
			edit := func(r, other *replica) {
				t.Helper()
				edits++
				want := fmt.Sprint("edit ", edits)
				put(t, r.s, "/registry/x/edited", want)
				a.settle()
				if got := get(t, other.s, "/registry/x/edited", 0); got != want {
					t.Errorf("%s is %s elsewhere", want, got)
				}
			}
			for i, r := range a.replicas {
				ahead[i].Store(int64(wrong[i]))
				r.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead[i].Load())) }
				r.restart()
			}
			for i := range a.replicas {
				edit(a, b)
				edit(b, a)
				ahead[i].Store(0)
				edit(a, b)
				edit(b, a)
			}
			a.restart()
			edit(a, b)
			edit(b, a)
			a.check()
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	a, _ := pair(t, nil)
	put(t, a.s, "/registry/pods/a", "1")
	now := time.Now()
	change := func(key string, f func(*crdt.Record)) *crdt.Record {
		r := remote(key, "x", 1, now)
		f(r)
		return r
	}
	cases := map[string]struct {
		record *crdt.Record
		upTo   crdt.Vector
		want   error
	}{
		"local class":      {record: remote("/registry/ranges/x", "x", 1, now), want: ErrRejected},
		"local memory":     {record: remote("compact_rev_key", "x", 1, now), want: ErrRejected},
		"node lease":       {record: remote("/registry/leases/kube-node-lease/n", "x", 1, now), want: ErrRejected},
		"no key":           {record: change("/a", func(r *crdt.Record) { r.Key = nil }), want: ErrRejected},
		"no dot":           {record: change("/a", func(r *crdt.Record) { r.Dot = crdt.Dot{} }), want: ErrRejected},
		"no stamp":         {record: change("/a", func(r *crdt.Record) { r.Stamp = 0 }), want: ErrRejected},
		"garbage":          {record: change("/a", func(r *crdt.Record) { r.Meta = []byte("garbage") }), want: ErrRejected},
		"memory's origin":  {record: change("/a", func(r *crdt.Record) { r.Dot.Origin = peerMemory }), want: ErrRejected},
		"disk's origin":    {record: change("/registry/events/a", func(r *crdt.Record) { r.Dot.Origin = peerOrigin }), want: ErrRejected},
		"huge sequence":    {record: change("/a", func(r *crdt.Record) { r.Dot.Seq = math.MaxUint64 }), want: ErrRejected},
		"negative number":  {record: change("/a", func(r *crdt.Record) { r.Deadline = -1 }), want: ErrRejected},
		"from the future":  {record: remote("/a", "x", 1, now.Add(25*time.Hour)), want: crdt.ErrDrift},
		"vector of nobody": {upTo: crdt.Vector{0: 1}, want: ErrRejected},
		"vector too high":  {upTo: crdt.Vector{peerOrigin: math.MaxUint64}, want: ErrRejected},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			digest, vector, rev := a.s.Digest(), a.s.Vector(), a.s.Revision()
			records := []*crdt.Record{remote("/registry/pods/fine", "x", 2, now)}
			if c.record != nil {
				records = append(records, c.record)
			}
			if err := a.s.Apply(t.Context(), records, c.upTo); !errors.Is(err, c.want) {
				t.Errorf("apply: %v, want %v", err, c.want)
			}
			if a.s.Digest() != digest || !vector.Includes(a.s.Vector()) || a.s.Revision() != rev {
				t.Error("a refused change changed something")
			}
		})
	}
}

// TestApplyIsOneStep: readers see all of what was applied at once, or nothing.
func TestApplyIsOneStep(t *testing.T) {
	a, _ := pair(t, nil)
	const n = 3000
	var records []*crdt.Record
	for i := range n {
		records = append(records, remote(fmt.Sprint("/registry/pods/", i), "x", uint64(i+1), time.Now()))
	}
	done := make(chan error, 1)
	go func() { done <- a.s.Apply(t.Context(), records, crdt.Vector{peerOrigin: n}) }()
	for ended := false; !ended; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
		res, err := a.s.Range(t.Context(), RangeRequest{Key: []byte("/registry/pods/"), End: []byte("/registry/pods0"), CountOnly: true})
		if err != nil || res.Count != 0 && res.Count != n {
			t.Fatalf("%d keys, %v", res.Count, err)
		}
		claimed := a.s.Vector()[peerOrigin]
		if claimed != 0 && claimed != n {
			t.Fatalf("%d changes claimed", claimed)
		}
	}
}

// TestLivesFollowEachOther: another object in a key's place is a delete and a
// create to watchers, and both stay in the history.
func TestLivesFollowEachOther(t *testing.T) {
	object := func(uid string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":%q}}`, uid)
	}
	a, b := pair(t, nil)
	put(t, a.s, "/registry/x", object("older"))
	put(t, b.s, "/registry/x", object("younger"))
	from := b.s.Revision()
	b.pull(a)
	for name, start := range map[string]int64{"queued": 0, "from history": from + 1} {
		if start == 0 {
			continue
		}
		w, err := b.s.Watch(t.Context(), WatchRequest{Key: []byte("/registry/"), End: []byte("/registry0"), StartRevision: start})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for len(got) < 2 {
			for _, e := range (<-w.Events()).Events {
				got = append(got, fmt.Sprint(e.Type, " ", uidOf(e.KV.Value), " ", e.KV.Version))
			}
		}
		w.Close()
		if want := "1  0, 0 older 1"; strings.Join(got, ", ") != want {
			t.Errorf("%s: watcher saw %q, want %q", name, got, want)
		}
	}
	b.drain()
	a.settle()
	a.check()
	if got := uidOf([]byte(get(t, a.s, "/registry/x", 0))); got != "older" {
		t.Errorf("%s is left", got)
	}
	conflicts, err := a.s.Conflicts(t.Context())
	if err != nil || len(conflicts) != 1 || conflicts[0].UID != "younger" || conflicts[0].Key != "/registry/x" {
		t.Errorf("conflicts %+v, %v", conflicts, err)
	}
}

// TestConflictsAreBounded: the newest are kept, the same ones everywhere.
func TestConflictsAreBounded(t *testing.T) {
	a, b := pair(t, nil)
	const n = maxConflicts + 200
	for i := range n {
		for _, r := range []*replica{a, b} {
			key := fmt.Sprintf("/registry/x/%04d", i)
			put(t, r.s, key, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"uid":"%d-%d"}}`, r.id, i))
		}
	}
	a.settle()
	a.check()
	conflicts, err := a.s.Conflicts(t.Context())
	if err != nil || len(conflicts) == 0 || len(conflicts) > maxConflicts {
		t.Fatalf("%d conflicts, %v", len(conflicts), err)
	}
	for _, c := range conflicts {
		if c.Key < fmt.Sprintf("/registry/x/%04d", n-maxConflicts) {
			t.Fatalf("the conflict of %s is still there", c.Key)
		}
	}
}

// TestObservedConflictsPushNothingOut: a status that both sides write all the
// time leaves the conflicts of what people wrote alone.
func TestObservedConflictsPushNothingOut(t *testing.T) {
	a, b := pair(t, nil)
	object := func(word string, ready int) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Widget","metadata":{"uid":"u"},"spec":{"word":%q},"status":{"ready":%d}}`, word, ready)
	}
	put(t, a.s, "/registry/x", object("first", 0))
	a.settle()
	put(t, a.s, "/registry/x", object("left", 0))
	put(t, b.s, "/registry/x", object("right", 0))
	a.settle()
	for i := range maxConflicts + 100 {
		key := fmt.Sprintf("/registry/y/%04d", i)
		put(t, a.s, key, object("same", 0))
		b.pull(a)
		put(t, a.s, key, object("same", 1))
		put(t, b.s, key, object("same", 2))
	}
	a.settle()
	a.check()
	conflicts, err := a.s.Conflicts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	observed := 0
	var words []string
	for _, c := range conflicts {
		if c.Observed() {
			observed++
		} else {
			words = append(words, c.Key+c.Path)
		}
	}
	if !slices.Equal(words, []string{"/registry/x.spec.word"}) {
		t.Errorf("what people wrote: %v", words)
	}
	if observed == 0 || observed > maxConflicts {
		t.Errorf("%d of what is observed", observed)
	}
}

// TestHold: the caller of a replicated write waits for Hold's release, nobody
// else does, and closing the store answers all.
func TestHold(t *testing.T) {
	cfg := testConfig(t)
	cfg.FS = vfs.NewMem()
	type held struct {
		rev     int64
		release func()
	}
	calls := make(chan held, 10)
	cfg.Hold = func(rev int64, release func()) { calls <- held{rev, release} }
	s, stop := start(t, cfg)
	answered := make(chan error, 1)
	write := func() { answered <- tryPut(t, s, "/registry/pods/a", "x") }
	go write()
	h := <-calls
	if get(t, s, "/registry/pods/a", 0) != "x" || h.rev != s.Revision() {
		t.Errorf("held at %d, store is at %d", h.rev, s.Revision())
	}
	put(t, s, "/registry/events/e", "memory is not held")
	put(t, s, "/registry/ranges/r", "what stays here is not held")
	if err := s.Apply(t.Context(), []*crdt.Record{remote("/registry/pods/b", "x", 1, time.Now())}, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-answered:
		t.Fatalf("answered before the release: %v", err)
	default:
	}
	h.release()
	h.release()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	go write()
	<-calls
	stop()
	if err := <-answered; err != nil {
		t.Errorf("held when the store closed: %v", err)
	}
	if len(calls) != 0 {
		t.Errorf("%d calls too many", len(calls))
	}
}

// FuzzApply feeds records as a peer may forge them: none may panic, and what is
// applied can be read, and sent on to others.
func FuzzApply(f *testing.F) {
	now := time.Now()
	first := remote("/registry/pods/a", `{"metadata":{"uid":"1"},"a":1}`, 1, now)
	for _, r := range []*crdt.Record{
		first,
		remote("/registry/events/a", "x", 1, now),
		crdt.Put(first, first.Key, []byte(`{"metadata":{"uid":"2"}}`), crdt.Dot{Origin: 9, Seq: 4}, first.Stamp+1, crdt.Change{UID: "2"}),
		crdt.Delete(first, first.Key, crdt.Dot{Origin: 9, Seq: 5}, first.Stamp+2),
	} {
		f.Add(crdt.AppendRecord(nil, r), crdt.Vector{peerOrigin: 3}.Append(nil))
	}
	cfg := DefaultConfig("fuzz")
	cfg.FS = vfs.NewMem()
	cfg.BallastBytes = 0
	s, _ := start(f, cfg)
	put(f, s, "/registry/pods/a", `{"metadata":{"uid":"0"},"a":0}`)
	f.Fuzz(func(t *testing.T, record, vector []byte) {
		r, err := crdt.DecodeRecord(bytes.Clone(record)) // the store keeps it
		if err != nil {
			return
		}
		v, err := crdt.DecodeVector(vector)
		if err != nil {
			v = nil
		}
		before := s.Vector()
		err = s.Apply(t.Context(), []*crdt.Record{r, r}, v)
		if err != nil && !errors.Is(err, ErrRejected) && !errors.Is(err, crdt.ErrDrift) {
			t.Fatalf("apply: %v", err)
		}
		if _, err := s.Range(t.Context(), RangeRequest{Key: r.Key}); err != nil && len(r.Key) > 0 {
			t.Fatal(err)
		}
		if _, err := s.Conflicts(t.Context()); err != nil {
			t.Fatal(err)
		}
		tail, err := s.Tail(t.Context(), before)
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Close()
		for {
			f, _, err := tail.poll()
			if err != nil {
				t.Fatal(err)
			}
			if f.Vector == nil && !f.Cut {
				return
			}
			onWire(t, f.Records)
		}
	})
}
