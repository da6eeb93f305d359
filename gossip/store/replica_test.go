package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// replica is one store of a test's cluster, what its watchers saw and its tails
// of the others.
type replica struct {
	*cluster
	id    int
	cfg   Config
	fs    *vfs.MemFS
	s     *Store
	stop  func()
	watch *Watcher
	seen  map[string]KeyValue // by the watcher
	tails []*Tail             // this replica's of each other
}

// cluster is replicas that exchange changes step by step.
type cluster struct {
	t        *testing.T
	rng      *rand.Rand
	replicas []*replica
	keys     []string
	acked    []ackedWrite
	uids     int
	buried   bool // tombstones may differ
	trace    []string
	names    map[crdt.Origin]string
}

type ackedWrite struct {
	key string
	dot crdt.Dot
}

func newCluster(t *testing.T, seed uint64, n int, change func(*Config)) *cluster {
	c := &cluster{t: t, rng: rand.New(rand.NewPCG(seed, 1)), names: map[crdt.Origin]string{}}
	for i := range n {
		r := &replica{cluster: c, id: i, fs: vfs.NewCrashableMem(), tails: make([]*Tail, n)}
		r.cfg = testConfig(t)
		r.cfg.Node = crdt.NodeNumber(i + 1)
		r.cfg.RecentBytes = 1 // reads go to the log
		r.cfg.BallastBytes = 0
		if change != nil {
			change(&r.cfg)
		}
		c.replicas = append(c.replicas, r)
		r.open()
	}
	return c
}

// say notes a step for the case of failure.
func (c *cluster) say(format string, args ...any) {
	c.trace = append(c.trace, fmt.Sprintf(format, args...))
}

func (c *cluster) dot(d crdt.Dot) string { return fmt.Sprint(c.names[d.Origin], ".", d.Seq) }

func (c *cluster) vector(v crdt.Vector) string {
	var all []string
	for o, seq := range v {
		all = append(all, c.dot(crdt.Dot{Origin: o, Seq: seq}))
	}
	slices.Sort(all)
	return fmt.Sprint(all)
}

func (c *cluster) records(rs []*crdt.Record) string {
	var all []string
	for _, r := range rs {
		all = append(all, fmt.Sprintf("%s %s%v deleted=%v joined=%v", r.Key, c.dot(r.Dot), c.vector(r.Seen()), r.Deleted, r.Joined()))
	}
	return strings.Join(all, "; ")
}

func (r *replica) open() {
	r.t.Helper()
	r.cfg.FS = r.fs
	r.s, r.stop = start(r.t, r.cfg)
	own, memory := r.s.Origins()
	r.names[own], r.names[memory] = fmt.Sprint("d", r.id), fmt.Sprint("m", r.id, "-", len(r.names))
	r.seen = map[string]KeyValue{}
	r.follow()
}

// follow begins a watch of everything from what is there now.
func (r *replica) follow() {
	r.t.Helper()
	res, err := r.s.Range(r.t.Context(), RangeRequest{Key: []byte{0}, End: []byte{0}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.seen = map[string]KeyValue{}
	for _, kv := range res.KVs {
		r.seen[string(kv.Key)] = kv
	}
	if r.watch, err = r.s.Watch(r.t.Context(), WatchRequest{Key: []byte{0}, End: []byte{0}, StartRevision: res.Revision + 1}); err != nil {
		r.t.Fatal(err)
	}
}

// drain takes in what the watcher has, and checks that every key's events make
// one history.
func (r *replica) drain() {
	r.t.Helper()
	r.watch.Progress()
	for {
		b, ok := <-r.watch.Events()
		if !ok && errors.Is(r.watch.Err(), ErrCompacted) {
			r.follow() // it was slow when the note of what is forgotten moved the floor
			return
		}
		if !ok {
			r.t.Fatalf("replica %d: watcher ended: %v", r.id, r.watch.Err())
		}
		for _, e := range b.Events {
			r.see(e)
		}
		if len(b.Events) == 0 && b.Revision >= r.s.Revision() {
			return
		}
	}
}

func (r *replica) see(e Event) {
	r.t.Helper()
	key := string(e.KV.Key)
	was, there := r.seen[key]
	switch {
	case e.Type == EventDelete && !there:
		r.t.Fatalf("replica %d: %s was deleted, but is not there", r.id, key)
	case e.Type == EventDelete:
		delete(r.seen, key)
		return
	case !there && (e.KV.Version != 1 || e.KV.CreateRevision != e.KV.ModRevision):
		r.t.Fatalf("replica %d: %s begins with %+v", r.id, key, e.KV)
	case there && (e.KV.Version != was.Version+1 || e.KV.CreateRevision != was.CreateRevision || e.KV.ModRevision <= was.ModRevision):
		r.t.Fatalf("replica %d: %s goes from %+v to %+v", r.id, key, was, e.KV)
	case there && uidOf(was.Value) != uidOf(e.KV.Value):
		r.t.Fatalf("replica %d: %s changed its UID from %s to %s", r.id, key, was.Value, e.KV.Value)
	case e.Prev != nil && (!there || !bytes.Equal(e.Prev.Value, was.Value)): // nil once compacted
		r.t.Fatalf("replica %d: %s has previous %+v, want %+v", r.id, key, e.Prev, was)
	}
	r.seen[key] = e.KV
}

func uidOf(value []byte) string {
	var object struct{ Metadata struct{ UID string } }
	if json.Unmarshal(value, &object) != nil {
		return ""
	}
	return object.Metadata.UID
}

// tail returns the tail of from that r reads.
func (r *replica) tail(from *replica) *Tail {
	r.t.Helper()
	if t := r.tails[from.id]; t != nil {
		return t
	}
	r.say("%d tails %d with %s", r.id, from.id, r.vector(r.s.Vector()))
	t, err := from.s.Tail(r.t.Context(), r.s.Vector())
	if err != nil {
		r.t.Fatalf("tail of %d for %d: %v", from.id, r.id, err)
	}
	r.tails[from.id] = t
	return t
}

func (r *replica) hangUp(from *replica) {
	if t := r.tails[from.id]; t != nil {
		t.Close()
		r.tails[from.id] = nil
	}
}

// pull applies one frame of another replica; it reports whether there was one.
func (r *replica) pull(from *replica) bool {
	r.t.Helper()
	f, _, err := r.tail(from).poll()
	if err != nil {
		r.t.Fatalf("frame of %d for %d: %v", from.id, r.id, err)
	}
	if f.Vector == nil && !f.Cut {
		return false
	}
	r.say("%d gets of %d: %s, vector %s, cut %v", r.id, from.id, r.records(f.Records), r.vector(f.Vector), f.Cut)
	if err := r.s.Apply(r.t.Context(), onWire(r.t, f.Records), f.Vector); err != nil {
		r.t.Fatalf("apply of %d's frame at %d: %v", from.id, r.id, err)
	}
	if f.Vector != nil && !r.s.Vector().Includes(f.Vector) {
		r.t.Fatalf("replica %d claims %v after a frame up to %v", r.id, r.s.Vector(), f.Vector)
	}
	return true
}

// onWire returns the records as another process gets them.
func onWire(t *testing.T, records []*crdt.Record) []*crdt.Record {
	t.Helper()
	var out []*crdt.Record
	for _, r := range records {
		got, err := crdt.DecodeRecord(crdt.AppendRecord(nil, r))
		if err != nil {
			t.Fatalf("record %q: %v", r.Key, err)
		}
		out = append(out, got)
	}
	return out
}

func (r *replica) key() string { return r.keys[r.rng.IntN(len(r.keys))] }

// write does a random write, as an apiserver does: against what is there.
func (r *replica) write() {
	r.t.Helper()
	key := r.key()
	now, err := r.s.Range(r.t.Context(), RangeRequest{Key: []byte(key)})
	if err != nil {
		r.t.Fatal(err)
	}
	op := Op{Kind: OpPut, Key: []byte(key)}
	var rev int64
	uid := ""
	if len(now.KVs) > 0 {
		rev, uid = now.KVs[0].ModRevision, uidOf(now.KVs[0].Value)
		if r.rng.IntN(5) == 0 {
			op.Kind = OpDelete
		}
	}
	if op.Kind == OpPut {
		op.Value = r.value(key, now.KVs, uid)
	}
	res, err := r.s.Txn(r.t.Context(), Txn{
		If:   []Compare{{Key: []byte(key), Target: TargetMod, Relation: Equal, Int: rev}},
		Then: []Op{op},
	})
	if err != nil || !res.Succeeded {
		r.t.Fatalf("write of %s at %d: %+v, %v", key, r.id, res, err)
	}
	it, ok := r.s.view.Load().items.Get(&item{key: []byte(key)})
	if !ok {
		r.t.Fatalf("%s is gone after a write", key)
	}
	r.say("%d writes %s: %s deleted=%v", r.id, key, r.dot(it.newest().dot), op.Kind == OpDelete)
	if classOf([]byte(key)).counted() {
		r.acked = append(r.acked, ackedWrite{key: key, dot: it.newest().dot})
	}
}

// value returns a new value of a key: of the same object if there is one. That of
// a Lease is often renewed only.
func (r *replica) value(key string, now []KeyValue, uid string) []byte {
	if len(now) > 0 && uid == "" || len(now) == 0 && r.rng.IntN(3) == 0 {
		return strconv.AppendInt(nil, r.rng.Int64N(1000), 10)
	}
	kind, part := "ConfigMap", "data"
	if classOf([]byte(key)).holders {
		kind, part = "Lease", "spec"
	}
	object := map[string]any{}
	if len(now) > 0 {
		if err := json.Unmarshal(now[0].Value, &object); err != nil {
			r.t.Fatal(err)
		}
	} else {
		r.uids++
		object["apiVersion"], object["kind"] = "v1", kind
		object["metadata"] = map[string]any{"uid": fmt.Sprint("uid-", r.uids)}
		object[part] = map[string]any{}
	}
	data, ok := object[part].(map[string]any)
	if !ok {
		data = map[string]any{}
		object[part] = data
	}
	field := string(rune('a' + r.rng.IntN(4)))
	if kind == "Lease" && r.rng.IntN(2) == 0 {
		field = "renewTime"
	}
	if _, ok := data[field]; ok && r.rng.IntN(4) == 0 {
		delete(data, field)
	} else {
		data[field] = fmt.Sprint(r.rng.IntN(1000))
	}
	b, err := json.Marshal(object)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// restart stops the store, or takes its power away with a random part of what
// was not synced.
func (r *replica) restart() {
	r.t.Helper()
	for _, other := range r.replicas {
		r.hangUp(other)
		other.hangUp(r)
	}
	r.say("%d restarts with %s", r.id, r.vector(r.s.Vector()))
	r.drain()
	before, locks := lasting(r.s.Vector()), r.locks()
	crashed := r.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.rng.IntN(101), RNG: r.rng})
	r.stop()
	if r.rng.IntN(2) == 0 {
		r.fs = crashed
	}
	r.open()
	if now := r.s.Vector(); !now.Includes(before) || !before.Includes(now) {
		r.t.Fatalf("replica %d claims %v after a restart, was %v", r.id, now, before)
	}
	if now := r.locks(); !reflect.DeepEqual(now, locks) {
		r.t.Fatalf("replica %d has the leases %v after a restart, had %v", r.id, now, locks)
	}
}

// locks returns what there is of Leases, but for when they were renewed.
func (r *replica) locks() map[string]*leaseObject {
	r.t.Helper()
	res, err := r.s.Range(r.t.Context(), RangeRequest{Key: []byte("/registry/leases/"), End: []byte("/registry/leases0")})
	if err != nil {
		r.t.Fatal(err)
	}
	locks := map[string]*leaseObject{}
	for _, kv := range res.KVs {
		if l := holding(kv.Value); l != nil {
			locks[string(kv.Key)] = l
		}
	}
	return locks
}

func (r *replica) compact() {
	r.t.Helper()
	r.say("%d compacts", r.id)
	r.drain()
	if err := r.s.Compact(r.t.Context(), r.s.Revision()); err != nil && !errors.Is(err, ErrCompacted) {
		r.t.Fatal(err)
	}
}

// wipe takes everything out, and gets it anew from another.
func (r *replica) wipe(from *replica) {
	r.t.Helper()
	r.say("%d is wiped, to be had from %d with %s", r.id, from.id, r.vector(from.s.Vector()))
	for _, other := range r.replicas {
		r.hangUp(other)
	}
	r.watch.Close()
	before := r.s.Vector()
	if err := r.s.Wipe(r.t.Context(), from.s.Vector()); err != nil {
		r.t.Fatal(err)
	}
	own, memory := r.s.Origins()
	r.names[own], r.names[memory] = fmt.Sprint("d", r.id, "-", len(r.names)), fmt.Sprint("m", r.id, "-", len(r.names))
	for r.pull(from) {
	}
	if v := r.s.Vector(); !v.Includes(lasting(before)) {
		r.t.Fatalf("replica %d claims %s, before it was wiped %s", r.id, r.vector(v), r.vector(before))
	}
	r.follow()
}

// settle exchanges until nobody has news.
func (c *cluster) settle() {
	c.t.Helper()
	n := len(c.trace)
	for news := true; news; {
		if news = false; len(c.trace) > n+10_000 {
			c.t.Fatalf("there is no end of news:\n%s", strings.Join(c.trace[n+9_900:], "\n"))
		}
		for _, r := range c.replicas {
			for _, from := range c.replicas {
				for r != from && r.pull(from) {
					news = true
				}
			}
		}
	}
}

// state returns what is the same on all replicas, by key.
func (r *replica) state() map[string]string {
	r.t.Helper()
	all := map[string]string{}
	r.s.view.Load().items.Ascend(func(it *item) bool {
		if !classOf(it.key).replicated || r.buried && it.newest().deleted {
			return true
		}
		rec, err := r.s.record(it.newest())
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := crdt.AppendState(nil, rec)
		if err != nil {
			r.t.Fatal(err)
		}
		all[string(it.key)] = string(b)
		return true
	})
	return all
}

func (r *replica) describe(key string) string {
	it, ok := r.s.view.Load().items.Get(&item{key: []byte(key)})
	if !ok {
		return "unknown"
	}
	rec, err := r.s.record(it.newest())
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %q %x", r.records([]*crdt.Record{rec}), rec.Value, rec.Meta)
}

// check compares the replicas after they have settled.
func (c *cluster) check() {
	c.t.Helper()
	defer func() {
		if c.t.Failed() {
			c.t.Log(strings.Join(c.trace, "\n"))
		}
	}()
	first := c.replicas[0]
	want := first.state()
	for _, r := range c.replicas {
		if got := r.state(); !maps.Equal(got, want) {
			for key := range want {
				if got[key] != want[key] {
					c.t.Errorf("%s is %s on replica %d, %s on 0", key, r.describe(key), r.id, first.describe(key))
				}
			}
			c.t.Fatalf("replica %d has %d keys, replica 0 has %d", r.id, len(got), len(want))
		}
		if r.s.Digest() != first.s.Digest() {
			c.t.Fatalf("replica %d has digest %s, replica 0 has %s", r.id, r.s.Digest(), first.s.Digest())
		}
		if a, b := r.s.Vector(), first.s.Vector(); !a.Includes(b) || !b.Includes(a) {
			c.t.Fatalf("replica %d includes %v, replica 0 %v", r.id, a, b)
		}
		r.drain()
		r.checkSeen()
		r.checkDigest()
	}
	c.checkAcked()
}

// checkSeen compares what the watcher saw with what is there.
func (r *replica) checkSeen() {
	r.t.Helper()
	res, err := r.s.Range(r.t.Context(), RangeRequest{Key: []byte{0}, End: []byte{0}})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, kv := range res.KVs {
		if saw := r.seen[string(kv.Key)]; !bytes.Equal(saw.Value, kv.Value) || saw.ModRevision != kv.ModRevision {
			r.t.Fatalf("replica %d: watcher saw %+v, there is %+v", r.id, saw, kv)
		}
	}
	if len(res.KVs) != len(r.seen) {
		r.t.Fatalf("replica %d: watcher saw %d keys, there are %d", r.id, len(r.seen), len(res.KVs))
	}
}

// checkDigest compares the digest that was kept with one made afresh.
func (r *replica) checkDigest() {
	r.t.Helper()
	var want Digest
	r.s.view.Load().items.Ascend(func(it *item) bool {
		if !classOf(it.key).counted() || it.newest().deleted {
			return true
		}
		rec, err := r.s.record(it.newest())
		if err != nil {
			r.t.Fatal(err)
		}
		want.Sum += digestOf(rec)
		want.Keys++
		return true
	})
	if got := r.s.Digest(); got != want {
		r.t.Fatalf("replica %d: digest is %s, want %s", r.id, got, want)
	}
}

// checkAcked makes sure that every write that was acknowledged is part of what
// its key holds, or part of what was deleted and forgotten.
func (c *cluster) checkAcked() {
	c.t.Helper()
	s := c.replicas[0].s
	v := s.view.Load()
	for _, w := range c.acked {
		if !s.Vector().Covers(w.dot) {
			c.t.Fatalf("write %s of %s is not included", w.dot, w.key)
		}
		it, ok := v.items.Get(&item{key: []byte(w.key)})
		if !ok {
			continue
		}
		rec, err := s.record(it.newest())
		if err != nil {
			c.t.Fatal(err)
		}
		if !rec.Covers(w.dot) && !v.forgotten.Covers(w.dot) {
			c.t.Fatalf("%s does not include the acknowledged write %s", w.key, w.dot)
		}
	}
}

// restart stops all replicas at once, and starts them anew.
func (c *cluster) restart() {
	for _, r := range c.replicas {
		r.restart()
	}
}

func (c *cluster) step() {
	c.t.Helper()
	n := len(c.replicas)
	r := c.replicas[c.rng.IntN(n)]
	from := c.replicas[(r.id+1+c.rng.IntN(n-1))%n]
	switch d := c.rng.IntN(100); {
	case d < 50:
		r.write()
	case d < 85:
		r.pull(from)
	case d < 90:
		r.hangUp(from)
	case d < 94:
		r.drain()
	case d < 97:
		r.compact()
	case d < 98:
		r.wipe(from)
	case d < 99:
		r.restart()
	default:
		c.restart()
	}
}

// replicationSeeds returns the seeds to run: MOOT_SEED repeats one,
// MOOT_HISTORIES runs that many new ones.
func replicationSeeds(quick int) []uint64 {
	if n, err := strconv.ParseUint(os.Getenv("MOOT_SEED"), 10, 64); err == nil {
		return []uint64{n}
	}
	from := uint64(1)
	if n, err := strconv.Atoi(os.Getenv("MOOT_HISTORIES")); err == nil {
		quick, from = n, uint64(time.Now().UnixNano())
	}
	seeds := make([]uint64, quick)
	for i := range seeds {
		seeds[i] = from + uint64(i)
	}
	return seeds
}

// TestReplicasConverge lets three replicas write, exchange frames in random
// order, hang up, compact, crash and restart. In the end all hold the same,
// nothing acknowledged is missing, and every watcher saw one history.
func TestReplicasConverge(t *testing.T) {
	for _, seed := range replicationSeeds(25) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			c := newCluster(t, seed, 3, nil)
			for i := range 5 {
				c.keys = append(c.keys, fmt.Sprint("/registry/configmaps/", i), fmt.Sprint("/registry/leases/x/", i))
			}
			for range 300 {
				c.step()
			}
			c.settle()
			c.check()
			c.buried = true
			all := c.replicas[0].s.Vector()
			for _, r := range c.replicas {
				r.s.SetStable(all)
				put(t, r.s, fmt.Sprint("/registry/after/", r.id), "x")
				r.compact()
				c.say("%d has %s stable", r.id, c.vector(all))
				eventually(t, "tombstones gone", func() bool { return graveCount(r.s, durable) == 0 })
			}
			c.settle()
			c.check()
		})
	}
}

func tombstones(s *Store) int {
	return graveCount(s, durable) + graveCount(s, memory) + graveCount(s, lock) + graveCount(s, event)
}

// graveCount counts the tombstones of a class.
func graveCount(s *Store, cls class) int {
	n := 0
	s.view.Load().items.Ascend(func(it *item) bool {
		if it.newest().deleted && classOf(it.key) == cls {
			n++
		}
		return true
	})
	return n
}
