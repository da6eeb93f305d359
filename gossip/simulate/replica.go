package simulate

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
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
	digest  uint64      // the sum of those of the keys' states
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
	r.digest += digestOf(rec) - digestOf(r.keys[string(rec.Key)])
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
			own := *merged // not the message that it came in
			own.Key, own.Value, own.Meta = bytes.Clone(own.Key), bytes.Clone(own.Value), bytes.Clone(own.Meta)
			r.addLocked(&own)
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

// digestOf is the part of the digest that a key has.
func digestOf(rec *crdt.Record) uint64 {
	if rec == nil {
		return 0
	}
	h := fnv.New64a()
	b, err := crdt.AppendState(nil, rec)
	if err != nil {
		b = append(b, err.Error()...)
	}
	_, _ = h.Write(b)
	return h.Sum64()
}

// Digest is equal for equal content.
func (r *Replica) Digest() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%016x", r.digest)
}

// Wipe forgets everything.
func (r *Replica) Wipe(context.Context, crdt.Vector) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.log, r.digest, r.vector = make(map[string]*crdt.Record), nil, 0, crdt.Vector{r.origin: r.seq}
	return nil
}

// Owed is nil: what was wiped is forgotten.
func (r *Replica) Owed() crdt.Vector { return nil }

// GiveUpOwed has nothing to do.
func (r *Replica) GiveUpOwed(context.Context) error { return nil }

// Beyond is nil: that is only asked by replicas that outlive a start.
func (r *Replica) Beyond() crdt.Vector { return nil }

// Trust has nothing to do: each start is an incarnation.
func (r *Replica) Trust(context.Context) error { return nil }

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
func (r *Replica) Tail(_ context.Context, have crdt.Vector, delay func(crdt.Origin) time.Duration) (gossip.Tail, error) {
	return &tail{replica: r, delay: delay, have: have.Clone(), heard: make(chan struct{}, 1)}, nil
}

type tail struct {
	replica *Replica
	delay   func(crdt.Origin) time.Duration
	next    int
	pending time.Time // since when changes wait for their delay
	heard   chan struct{}

	mu   sync.Mutex
	have crdt.Vector
}

func (t *tail) Acked(v crdt.Vector) {
	t.mu.Lock()
	t.have.Join(v)
	t.mu.Unlock()
	select {
	case t.heard <- struct{}{}:
	default:
	}
}

func (t *tail) Close() {}

func (t *tail) Next(ctx context.Context) (store.Frame, error) {
	for {
		f, left, changed := t.look()
		if left == 0 && t.worth(f) {
			return f, nil
		}
		var after <-chan time.Time
		if left > 0 {
			after = time.After(left)
		}
		select {
		case <-changed:
		case <-after:
		case <-t.heard:
		case <-ctx.Done():
			return store.Frame{}, ctx.Err()
		}
	}
}

// worth reports whether the peer lacks something of the frame, which it includes
// from now on.
func (t *tail) worth(f store.Frame) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(f.Records) == 0 && t.have.Includes(f.Vector) {
		return false
	}
	t.have.Join(f.Vector)
	return true
}

// look returns what is next, or how long it is still to wait for the peer to
// get it from elsewhere.
func (t *tail) look() (f store.Frame, left time.Duration, changed <-chan struct{}) {
	r := t.replica
	r.mu.Lock()
	defer r.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	next, size := t.next, 0
	for next < len(r.log) && size < frameBytes {
		rec := r.log[next]
		next++
		if t.have.Covers(rec.Dot) && !rec.Joined() {
			continue
		}
		wait := t.delay(rec.Dot.Origin)
		if len(f.Records) == 0 || wait < left {
			left = wait
		}
		f.Records = append(f.Records, rec)
		size += len(rec.Key) + len(rec.Value)
	}
	if left > 0 {
		if t.pending.IsZero() {
			t.pending = time.Now()
		}
		if left -= time.Since(t.pending); left > 0 {
			return f, left, r.changed
		}
	}
	t.next, t.pending = next, time.Time{}
	if next == len(r.log) {
		f.Vector, f.Revision = r.vector, int64(len(r.log))
	} else {
		f.Cut = true // no vector is known for the middle of the history
	}
	return f, 0, r.changed
}
