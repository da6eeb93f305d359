package simulate

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

// frameBytes is about what a frame of a [Replica] holds.
const frameBytes = 256 << 10

// Replica is a [gossip.Replica] in memory: the history, whole, and nothing of
// what else makes a store. Merging is the real thing.
type Replica struct {
	// Hold is called after a local write, as store.Config.Hold is.
	Hold func(rev int64, release func())

	origin crdt.Origin

	mu      sync.Mutex
	keys    map[string]*crdt.Record
	log     []*crdt.Record
	vector  crdt.Vector // replaced, never changed in place
	stable  crdt.Vector
	clock   crdt.Clock
	seq     uint64
	changed chan struct{} // closed and replaced when something changes
}

// NewReplica returns an empty replica of an incarnation.
func NewReplica(origin crdt.Origin) *Replica {
	return &Replica{origin: origin, keys: make(map[string]*crdt.Record), vector: crdt.Vector{}, changed: make(chan struct{})}
}

// Origin implements [gossip.Replica], as the methods below do.
func (r *Replica) Origin() crdt.Origin { return r.origin }

// Revision counts the changes.
func (r *Replica) Revision() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.log))
}

// Vector says what has been applied.
func (r *Replica) Vector() crdt.Vector {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.vector
}

// Put writes a key and waits until Hold lets go.
func (r *Replica) Put(ctx context.Context, key string, value []byte) error {
	return r.write(ctx, key, value, false)
}

// Delete deletes a key.
func (r *Replica) Delete(ctx context.Context, key string) error {
	return r.write(ctx, key, nil, true)
}

func (r *Replica) write(ctx context.Context, key string, value []byte, del bool) error {
	r.mu.Lock()
	held := r.keys[key]
	if del && (held == nil || held.Deleted) {
		r.mu.Unlock()
		return nil
	}
	var stamp crdt.Stamp
	r.clock, stamp = r.clock.Tick(time.Now())
	r.seq++
	dot := crdt.Dot{Origin: r.origin, Seq: r.seq}
	var rec *crdt.Record
	if del {
		rec = crdt.Delete(held, []byte(key), dot, stamp)
	} else {
		rec = crdt.Put(held, []byte(key), value, dot, stamp, crdt.Change{})
	}
	r.addLocked(rec)
	v := r.vector.Clone()
	v.Note(dot)
	r.vector = v
	rev := int64(len(r.log))
	r.mu.Unlock()
	if r.Hold == nil {
		return nil
	}
	done := make(chan struct{})
	r.Hold(rev, func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Replica) addLocked(rec *crdt.Record) {
	r.keys[string(rec.Key)] = rec
	r.log = append(r.log, rec)
	close(r.changed)
	r.changed = make(chan struct{})
}

// Apply takes in a peer's changes.
func (r *Replica) Apply(_ context.Context, records []*crdt.Record, upTo crdt.Vector) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, came := range records {
		merged, outcome, _, err := crdt.Merge(r.keys[string(came.Key)], came)
		if err != nil {
			return fmt.Errorf("apply change: %w", err)
		}
		r.clock.High = max(r.clock.High, came.Stamp)
		if outcome != crdt.Kept {
			r.addLocked(merged)
		}
	}
	if !r.vector.Includes(upTo) {
		v := r.vector.Clone()
		v.Join(upTo)
		r.vector = v
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return nil
}

// SetStable notes what all members have.
func (r *Replica) SetStable(v crdt.Vector) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stable = v
}

// Stable returns what SetStable was last called with.
func (r *Replica) Stable() crdt.Vector {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stable
}

// Digest is equal for equal content.
func (r *Replica) Digest() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := fnv.New64a()
	for _, k := range slices.Sorted(maps.Keys(r.keys)) {
		b, err := crdt.AppendState(nil, r.keys[k])
		if err != nil {
			return "damaged: " + err.Error()
		}
		_, _ = h.Write(b)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// Wipe forgets everything.
func (r *Replica) Wipe(context.Context, crdt.Vector) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.log, r.vector = make(map[string]*crdt.Record), nil, crdt.Vector{r.origin: r.seq}
	return nil
}

// List returns the values below prefix.
func (r *Replica) List(_ context.Context, prefix string) (map[string][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string][]byte)
	for k, rec := range r.keys {
		if name, ok := strings.CutPrefix(k, prefix); ok && !rec.Deleted {
			out[name] = rec.Value
		}
	}
	return out, nil
}

// Get returns the value of a key.
func (r *Replica) Get(key string) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.keys[key]
	if !ok || rec.Deleted {
		return nil, false
	}
	return rec.Value, true
}

// Tail delivers the history from its beginning, without what have includes.
func (r *Replica) Tail(_ context.Context, have crdt.Vector, _ func(crdt.Origin) time.Duration) (gossip.Tail, error) {
	return &tail{replica: r, have: have.Clone(), told: crdt.Vector{}}, nil
}

type tail struct {
	replica *Replica
	next    int

	mu   sync.Mutex
	have crdt.Vector
	told crdt.Vector
}

func (t *tail) Acked(v crdt.Vector) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have.Join(v)
}

func (t *tail) Close() {}

func (t *tail) Next(ctx context.Context) (store.Frame, error) {
	r := t.replica
	for {
		r.mu.Lock()
		f := store.Frame{}
		size := 0
		t.mu.Lock()
		for t.next < len(r.log) && size < frameBytes {
			rec := r.log[t.next]
			t.next++
			if t.have.Covers(rec.Dot) && !rec.Joined() {
				continue
			}
			f.Records = append(f.Records, rec)
			size += len(rec.Key) + len(rec.Value)
		}
		t.mu.Unlock()
		if t.next == len(r.log) {
			f.Vector, f.Revision = r.vector, int64(len(r.log))
		} else {
			f.Cut = true // no vector is known for the middle of the history
		}
		changed := r.changed
		r.mu.Unlock()
		if len(f.Records) > 0 || f.Vector != nil && !t.told.Includes(f.Vector) {
			t.told.Join(f.Vector)
			return f, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return store.Frame{}, ctx.Err()
		}
	}
}
