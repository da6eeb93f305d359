package rotation

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/mootkube/moot/gossip/store"
)

// view is a member's replica, in memory. Of two changes of a key the later wins;
// changes come to another view in the order in which they came to this one.
type view struct {
	origin  string
	changes []change // as they came here
	newest  map[string]int
	has     map[dot]bool
}

type dot struct {
	origin string
	seq    int
}

type change struct {
	dot
	stamp int
	key   string
	value []byte // nil: deleted
}

func newView(origin string) *view {
	return &view{origin: origin, newest: map[string]int{}, has: map[dot]bool{}}
}

// copyOf is what a new replica begins with.
func copyOf(origin string, from *view) *view {
	v := newView(origin)
	v.pull(from, len(from.changes))
	return v
}

// pull takes in the next n changes of another that are missing here.
func (v *view) pull(from *view, n int) {
	for _, c := range from.changes {
		if n == 0 {
			return
		}
		if !v.has[c.dot] {
			v.take(c)
			n--
		}
	}
}

func (v *view) take(c change) {
	v.has[c.dot] = true
	v.changes = append(v.changes, c)
	at, held := v.newest[c.key]
	if !held || cmp.Or(cmp.Compare(c.stamp, v.changes[at].stamp), cmp.Compare(c.origin, v.changes[at].origin)) > 0 {
		v.newest[c.key] = len(v.changes) - 1
	}
}

func (v *view) put(key string, value []byte) {
	stamp, seq := 0, 0
	for _, c := range v.changes {
		stamp = max(stamp, c.stamp)
		if c.origin == v.origin {
			seq = c.seq
		}
	}
	v.take(change{dot: dot{v.origin, seq + 1}, stamp: stamp + 1, key: key, value: value})
}

// under returns what the keys from the first on and before the end hold.
func (v *view) under(first, end string) map[string]change {
	found := map[string]change{}
	for key, at := range v.newest {
		if c := v.changes[at]; key >= first && key < end && c.value != nil {
			found[key] = c
		}
	}
	return found
}

// Range is [Store]'s.
func (v *view) Range(_ context.Context, req store.RangeRequest) (store.RangeResult, error) {
	end := string(req.End)
	if end == "" {
		end = string(req.Key) + "\x00"
	}
	var out store.RangeResult
	found := v.under(string(req.Key), end)
	for _, key := range slices.Sorted(maps.Keys(found)) {
		out.KVs = append(out.KVs, store.KeyValue{
			Key: []byte(key), Value: bytes.Clone(found[key].value), ModRevision: int64(v.newest[key]) + 1,
		})
	}
	return out, nil
}

// Txn is [Store]'s. It knows what a runner asks for.
func (v *view) Txn(ctx context.Context, t store.Txn) (store.TxnResult, error) {
	for _, c := range t.If {
		if c.Target != store.TargetMod || c.Relation != store.Equal {
			return store.TxnResult{}, errors.New("comparison is not known")
		}
		have, err := v.Range(ctx, store.RangeRequest{Key: c.Key})
		if err != nil {
			return store.TxnResult{}, err
		}
		mod := int64(0)
		if len(have.KVs) == 1 {
			mod = have.KVs[0].ModRevision
		}
		if mod != c.Int {
			return store.TxnResult{}, nil
		}
	}
	for _, op := range t.Then {
		if op.Kind != store.OpPut {
			return store.TxnResult{}, errors.New("operation is not known")
		}
		v.put(string(op.Key), op.Value)
	}
	return store.TxnResult{Succeeded: true}, nil
}
