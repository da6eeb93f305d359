package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// history drives a store and a model through the same random calls.
type history struct {
	t     *testing.T
	rng   *rand.Rand
	cfg   Config
	s     *Store
	stop  func()
	m     model
	all   *Watcher // every change, to learn the revisions
	keys  []string
	lease []int64
}

func (h *history) open() {
	h.s, h.stop = start(h.t, h.cfg)
	h.watchAll()
}

func (h *history) watchAll() {
	var err error
	if h.all, err = h.s.Watch(h.t.Context(), WatchRequest{Key: []byte{0}, End: []byte{0}}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) key() []byte { return []byte(h.keys[h.rng.IntN(len(h.keys))]) }

// span returns a random range.
func (h *history) span() (key, end []byte) {
	switch h.rng.IntN(5) {
	case 0, 1:
		return h.key(), nil
	case 2:
		return []byte("/registry/pods/"), []byte("/registry/pods0")
	case 3:
		return h.key(), []byte{0}
	default:
		a, b := h.key(), h.key()
		if bytes.Compare(a, b) > 0 {
			a, b = b, a
		}
		return a, append(b, 'z')
	}
}

// revision returns 0, a revision that happened or one near it.
func (h *history) revision() int64 {
	if len(h.m.changes) == 0 || h.rng.IntN(3) == 0 {
		return 0
	}
	if h.rng.IntN(6) == 0 {
		return h.m.floor
	}
	return h.m.changes[h.rng.IntN(len(h.m.changes))].kv.ModRevision + int64(h.rng.IntN(3)) - 1
}

func (h *history) txn() Txn {
	var t Txn
	for range h.rng.IntN(3) {
		c := Compare{Key: h.key(), Target: Target(h.rng.IntN(5)), Relation: Relation(h.rng.IntN(4))}
		if h.rng.IntN(4) == 0 {
			c.Key, c.End = h.span()
		}
		c.Value = []byte(strconv.Itoa(h.rng.IntN(5)))
		if c.Int = int64(h.rng.IntN(4)); c.Target == TargetMod || c.Target == TargetCreate {
			c.Int = h.revision()
			if kvs := h.m.at(c.Key, c.End, newest); len(kvs) > 0 && h.rng.IntN(2) == 0 {
				c.Int, c.Target, c.Relation = kvs[0].ModRevision, TargetMod, Equal
			}
		}
		t.If = append(t.If, c)
	}
	t.Then, t.Else = h.ops(), h.ops()
	return t
}

func (h *history) ops() []Op {
	var ops []Op
	for range h.rng.IntN(4) {
		op := Op{Kind: []OpKind{OpRange, OpPut, OpPut, OpPut, OpDelete}[h.rng.IntN(5)], PrevKV: h.rng.IntN(2) == 0}
		switch op.Kind {
		case OpRange:
			op.Range.Key, op.Range.End = h.span()
		case OpPut:
			op.Key, op.Value = h.key(), []byte(strconv.Itoa(h.rng.IntN(5)))
			op.IgnoreValue, op.IgnoreLease = h.rng.IntN(6) == 0, h.rng.IntN(6) == 0
			if len(h.lease) > 0 && h.rng.IntN(3) == 0 {
				op.Lease = h.lease[h.rng.IntN(len(h.lease))]
			}
		case OpDelete:
			op.Key = h.key()
			if h.rng.IntN(4) == 0 {
				op.Key, op.End = h.span()
			}
		}
		ops = append(ops, op)
	}
	return ops
}

// refusal returns the error that a branch must meet, nil for none.
func (h *history) refusal(ops []Op) error {
	for i, a := range ops {
		for j, b := range ops {
			if a.Kind == OpPut && (b.Kind == OpPut && i != j && bytes.Equal(a.Key, b.Key) ||
				b.Kind == OpDelete && inModelRange(a.Key, b.Key, b.End)) {
				return ErrDuplicateKey
			}
		}
	}
	return nil
}

func (h *history) missing(ops []Op) bool {
	for _, op := range ops {
		if op.Kind == OpPut && (op.IgnoreLease || op.IgnoreValue) && len(h.m.at(op.Key, nil, newest)) == 0 {
			return true
		}
	}
	return false
}

func (h *history) runTxn() {
	h.t.Helper()
	txn := h.txn()
	res, err := h.s.Txn(h.t.Context(), txn)
	if h.refusal(txn.Then) != nil || h.refusal(txn.Else) != nil {
		if !errors.Is(err, ErrDuplicateKey) {
			h.t.Fatalf("duplicate keys: got %v", err)
		}
		return
	}
	holds := true
	for _, c := range txn.If {
		holds = holds && h.m.compare(c)
	}
	ops := txn.Else
	if holds {
		ops = txn.Then
	}
	if h.missing(ops) {
		if !errors.Is(err, ErrKeyNotFound) {
			h.t.Fatalf("keep of an absent key: got %v", err)
		}
		return
	}
	if err != nil {
		h.t.Fatalf("txn %+v: %v", txn, err)
	}
	if res.Succeeded != holds {
		h.t.Fatalf("txn %+v: guards hold: %v, want %v", txn, res.Succeeded, holds)
	}
	first := len(h.m.changes)
	want := make([]OpResult, len(ops))
	for i, op := range ops {
		want[i] = h.applyModel(op)
	}
	h.learn(first, res.Revision)
	for i := range want {
		h.checkResult(ops[i], res.Results[i], want[i], first)
	}
}

func (h *history) applyModel(op Op) OpResult {
	res := OpResult{Kind: op.Kind}
	switch op.Kind {
	case OpRange:
		res.Range.KVs = h.m.at(op.Range.Key, op.Range.End, newest)
	case OpPut:
		old := h.m.at(op.Key, nil, newest)
		if op.PrevKV {
			res.Prev = old
		}
		if op.IgnoreValue {
			op.Value = old[0].Value
		}
		if op.IgnoreLease {
			op.Lease = old[0].Lease
		}
		h.m.put(op.Key, op.Value, op.Lease)
	case OpDelete:
		for _, kv := range h.m.at(op.Key, op.End, newest) {
			res.Deleted++
			if op.PrevKV {
				res.Prev = append(res.Prev, kv)
			}
			h.m.delete(kv.Key)
		}
	}
	return res
}

// checkResult compares the outcome of an operation, but for revisions that the
// model did not know yet.
func (h *history) checkResult(op Op, got, want OpResult, first int) {
	h.t.Helper()
	blank := func(kvs []KeyValue) []KeyValue {
		out := []KeyValue{}
		for _, kv := range kvs {
			if first < len(h.m.changes) && kv.ModRevision >= h.m.changes[first].kv.ModRevision {
				kv.ModRevision = 0
			}
			if first < len(h.m.changes) && kv.CreateRevision >= h.m.changes[first].kv.ModRevision {
				kv.CreateRevision = 0
			}
			out = append(out, kv)
		}
		return out
	}
	if got.Kind != want.Kind || got.Deleted != want.Deleted || !reflect.DeepEqual(blank(got.Prev), blank(want.Prev)) ||
		!reflect.DeepEqual(blank(got.Range.KVs), blank(want.Range.KVs)) {
		h.t.Fatalf("operation %+v\n got %+v\nwant %+v", op, got, want)
	}
}

// learn takes the revisions of the changes from the first on from a watch, and
// checks its events.
func (h *history) learn(first int, rev int64) {
	h.t.Helper()
	for i := first; i < len(h.m.changes); {
		select {
		case b, ok := <-h.all.Events():
			if !ok {
				h.t.Fatalf("watcher ended: %v", h.all.Err())
			}
			for _, e := range b.Events {
				h.m.number(i, e.KV.ModRevision)
				h.checkEvent(e, h.m.changes[i])
				i++
			}
		case <-time.After(30 * time.Second):
			h.t.Fatalf("no event for change %d", i)
		}
	}
	if n := len(h.m.changes); n > first && h.m.changes[n-1].kv.ModRevision != rev {
		h.t.Fatalf("last change is at %d, transaction at %d", h.m.changes[n-1].kv.ModRevision, rev)
	}
}

func (h *history) checkEvent(e Event, c modelChange) {
	h.t.Helper()
	if (e.Type == EventDelete) != c.deleted || !reflect.DeepEqual(e.KV, c.kv) {
		h.t.Fatalf("event %+v, want %+v", e, c)
	}
	// What was before may be compacted away together with the start.
	if !reflect.DeepEqual(e.Prev, c.prev) && (e.Prev != nil || c.prev.ModRevision >= h.m.floor) {
		h.t.Fatalf("event %+v has previous %+v, want %+v", e, e.Prev, c.prev)
	}
}

func (h *history) wantReadError(key, end []byte, rev int64) error {
	switch {
	case rev == 0:
		return nil
	case rev > h.s.Revision():
		return ErrFutureRevision
	case rev < h.m.floor || rev < h.m.boot && touchesVolatile(key, end):
		return ErrCompacted
	}
	return nil
}

func (h *history) runRange() {
	h.t.Helper()
	key, end := h.span()
	req := RangeRequest{Key: key, End: end, Revision: h.revision(), Limit: int64(h.rng.IntN(4)),
		CountOnly: h.rng.IntN(5) == 0, KeysOnly: h.rng.IntN(5) == 0}
	res, err := h.s.Range(h.t.Context(), req)
	if want := h.wantReadError(key, end, req.Revision); !errors.Is(err, want) {
		h.t.Fatalf("range %+v: got %v, want %v", req, err, want)
	}
	var streamed RangeResult
	streamErr := h.s.RangeStream(h.t.Context(), req, func(r RangeResult) error {
		kvs := append(streamed.KVs, r.KVs...)
		streamed = r
		streamed.KVs = kvs
		return nil
	})
	if !errors.Is(streamErr, err) || err == nil && !reflect.DeepEqual(streamed, res) {
		h.t.Fatalf("stream of %+v\n got %+v %v\nwant %+v %v", req, streamed, streamErr, res, err)
	}
	if err != nil {
		return
	}
	rev := req.Revision
	if rev == 0 {
		rev = newest
	}
	want := h.m.at(key, end, rev)
	count := int64(len(want))
	more := false
	if req.CountOnly {
		want = nil
	} else if req.Limit > 0 && count > req.Limit {
		want, more = want[:req.Limit], true
	}
	for i := range want {
		if req.KeysOnly {
			want[i].Value = nil
		}
	}
	if res.Count != count || res.More != more || res.Revision != h.s.Revision() ||
		len(want) != len(res.KVs) || len(want) > 0 && !reflect.DeepEqual(res.KVs, want) {
		h.t.Fatalf("range %+v\n got %+v\nwant %+v, count %d, more %v", req, res, want, count, more)
	}
}

// runWatch replays history from a random revision.
func (h *history) runWatch() {
	h.t.Helper()
	key, end := h.span()
	from := h.revision()
	w, err := h.s.Watch(h.t.Context(), WatchRequest{Key: key, End: end, StartRevision: from})
	if from == 0 {
		from = newest
	}
	if want := h.wantReadError(key, end, min(from, h.s.Revision())); !errors.Is(err, want) {
		h.t.Fatalf("watch of %q %q from %d: got %v, want %v", key, end, from, err, want)
	}
	if err != nil {
		return
	}
	defer w.Close()
	w.Progress()
	var got []Event
	for done := false; !done; {
		b := <-w.Events()
		got = append(got, b.Events...)
		done = len(b.Events) == 0
		if done && b.Revision != h.s.Revision() {
			h.t.Fatalf("progress is %d, store is at %d", b.Revision, h.s.Revision())
		}
		if n := len(got); n > 0 && got[n-1].KV.ModRevision > b.Revision {
			h.t.Fatalf("batch up to %d has an event of %d", b.Revision, got[n-1].KV.ModRevision)
		}
	}
	for _, c := range h.m.changes {
		if c.kv.ModRevision < from || !inModelRange(c.kv.Key, key, end) {
			continue
		}
		if len(got) == 0 {
			h.t.Fatalf("watch from %d lacks %+v", from, c)
		}
		h.checkEvent(got[0], c)
		got = got[1:]
	}
	if len(got) > 0 {
		h.t.Fatalf("watch from %d has %+v too many", from, got)
	}
}

func (h *history) runCompact() {
	h.t.Helper()
	rev := h.revision()
	var want error
	switch {
	case rev <= h.m.floor:
		want = ErrCompacted
	case rev > h.s.Revision():
		want = ErrFutureRevision
	}
	if err := h.s.Compact(h.t.Context(), rev); !errors.Is(err, want) {
		h.t.Fatalf("compact %d: got %v, want %v", rev, err, want)
	}
	if want == nil {
		h.m.floor = rev
	}
}

func (h *history) runRestart() {
	h.all.Close()
	h.stop()
	h.open()
	h.lease = h.s.Leases()
	if h.s.CompactRevision() > h.m.floor {
		h.t.Fatalf("compacted to %d after a restart, was %d", h.s.CompactRevision(), h.m.floor)
	}
	// What was compacted only in memory may be readable again.
	h.m.floor = h.s.CompactRevision()
	h.m.restart(h.s.Revision())
}

func (h *history) runLease() {
	h.t.Helper()
	if len(h.lease) < 3 {
		l, err := h.s.Grant(h.t.Context(), 0, 3600)
		if err != nil {
			h.t.Fatal(err)
		}
		h.lease = append(h.lease, l.ID)
		return
	}
	id := h.lease[0]
	h.lease = h.lease[1:]
	first := len(h.m.changes)
	var keys [][]byte
	for _, kv := range h.m.at([]byte{0}, []byte{0}, newest) {
		if kv.Lease == id {
			keys = append(keys, kv.Key)
			h.m.delete(kv.Key)
		}
	}
	if st, err := h.s.TimeToLive(id, true); err != nil || !reflect.DeepEqual(st.Keys, keys) {
		h.t.Fatalf("lease %d has keys %q, %v, want %q", id, st.Keys, err, keys)
	}
	if err := h.s.Revoke(h.t.Context(), id); err != nil {
		h.t.Fatal(err)
	}
	h.learn(first, h.s.Revision())
}

func (h *history) step() {
	switch n := h.rng.IntN(100); {
	case n < 55:
		h.runTxn()
	case n < 75:
		h.runRange()
	case n < 88:
		h.runWatch()
	case n < 94:
		h.runLease()
	case n < 98:
		h.runCompact()
	default:
		h.runRestart()
	}
}

// TestRandomHistories runs the store beside the model. MOOT_SEED repeats one
// history, MOOT_HISTORIES runs that many new ones.
func TestRandomHistories(t *testing.T) {
	histories, from := 40, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("MOOT_HISTORIES")); err == nil {
		histories, from = n, uint64(time.Now().UnixNano())
	}
	if n, err := strconv.ParseUint(os.Getenv("MOOT_SEED"), 10, 64); err == nil {
		histories, from = 1, n
	}
	for i := range histories {
		seed := from + uint64(i)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			cfg := testConfig(t)
			cfg.FS = vfs.NewMem()
			cfg.RecentBytes = 1 // reads go to the log
			cfg.WatchEvents = 3
			h := &history{t: t, rng: rand.New(rand.NewPCG(seed, 0)), cfg: cfg}
			for j := range 4 {
				for _, prefix := range []string{"/registry/pods/", "/registry/events/", "/registry/ranges/", "/a/"} {
					h.keys = append(h.keys, prefix+strconv.Itoa(j))
				}
			}
			h.keys = append(h.keys, "compact_rev_key")
			h.open()
			for range 150 {
				h.step()
			}
		})
	}
}

// TestPinsAreBounded: a read that does not end holds up neither the bound on
// entries nor those on bytes for ever.
func TestPinsAreBounded(t *testing.T) {
	for what, change := range map[string]struct {
		set func(*Config)
		key string
	}{
		"entries":         {func(c *Config) { c.HistoryEntries = 50 }, "/registry/x/"},
		"bytes":           {func(c *Config) { c.HistoryBytes = 50 << 10 }, "/registry/x/"},
		"bytes in memory": {func(c *Config) { c.HistoryMemory = 50 << 10 }, "/registry/leases/x/"},
	} {
		t.Run(what, func(t *testing.T) {
			cfg := testConfig(t)
			change.set(&cfg)
			s, _ := start(t, cfg)
			_, release, err := s.pinned(0)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			most := 0
			for i := range 1000 {
				put(t, s, fmt.Sprint(change.key, i%10), strings.Repeat("x", 1<<10))
				most = max(most, len(s.view.Load().history))
			}
			if most > 200 {
				t.Errorf("a history of 50 changes grew to %d", most)
			}
		})
	}
}
