package difftest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// pair is one thing as each side names it: a revision, most often.
type pair struct{ ours, etcd int64 }

// history drives both sides through one random history.
type history struct {
	t          testing.TB
	ctx        context.Context
	rng        *rand.Rand
	seed       uint64
	ours, etcd *side
	revs       revisions
	compacted  int // index into revs of the newest compaction
	seen       []pair
	leases     []int64
	nextLease  int64
	streams    []*streamPair
	steps      int
	log        []string
}

// runHistory runs steps operations from seed against fresh servers.
func runHistory(t testing.TB, seed uint64, steps int) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	h := &history{
		t: t, ctx: ctx, seed: seed, nextLease: 1000,
		rng:  rand.New(rand.NewPCG(seed, 0)),
		ours: startOurs(t), etcd: startEtcd(t),
	}
	h.noteHeads()
	for range 2 {
		h.openStream()
	}
	for h.steps = range steps {
		h.step()
		if h.steps%25 == 24 {
			h.syncWatches()
		}
	}
	h.syncWatches()
	h.compareState()
	for _, s := range h.streams {
		s.close()
	}
}

// say records what is being done, for the report of a failure.
func (h *history) say(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%5d ", h.steps)+fmt.Sprintf(format, args...))
}

func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	var recent strings.Builder
	for _, line := range h.log[max(0, len(h.log)-15):] {
		recent.WriteString(line + "\n")
	}
	h.t.Fatalf("seed %d, step %d: %s\nlast operations:\n%s", h.seed, h.steps, fmt.Sprintf(format, args...), recent.String())
}

// outcome is a side's raw answer, to be brought into normal form once the
// revisions it may hold are known.
type outcome func(m mapper) answer

func failure(err error) outcome { return func(mapper) answer { return failed(err) } }

// both does one operation on both sides and requires the same answer.
func (h *history) both(do func(s *side) outcome) (ours, theirs answer) {
	h.t.Helper()
	fromOurs, fromEtcd := do(h.ours), do(h.etcd)
	h.noteHeads()
	ours, theirs = fromOurs(h.revs.toEtcd), fromEtcd(func(r int64) int64 { return r })
	if diff := cmp.Diff(theirs, ours); diff != "" {
		h.fail("answers differ (-etcd +ours):\n%s", diff)
	}
	return ours, theirs
}

// noteHeads learns which newest revisions belong together. That a read moves
// neither is part of what is compared.
func (h *history) noteHeads() {
	h.t.Helper()
	if err := h.revs.note(h.head(h.ours), h.head(h.etcd)); err != nil {
		h.fail("%v", err)
	}
}

func (h *history) head(s *side) int64 {
	h.t.Helper()
	r, err := s.kv.Range(h.ctx, &pb.RangeRequest{Key: []byte("/nothing"), CountOnly: true})
	if err != nil {
		h.fail("read the newest revision of %s: %v", s.name, err)
	}
	return r.Header.Revision
}

func (p pair) of(h *history, s *side) int64 {
	if s == h.ours {
		return p.ours
	}
	return p.etcd
}

// at is the state after the i-th change.
func (h *history) at(i int) pair { return pair{h.revs.ours[i], h.revs.etcd[i]} }

// from is where the i-th change begins.
func (h *history) from(i int) pair {
	if i == 0 {
		return h.at(0)
	}
	return pair{h.revs.ours[i-1] + 1, h.revs.etcd[i]}
}

// someRevision is the newest (as zero) half the time, else one of the past,
// sometimes compacted, sometimes yet to come.
func (h *history) someRevision() pair {
	switch h.rng.IntN(8) {
	case 0, 1, 2, 3:
		return pair{}
	case 4:
		ours, etcd := h.revs.last()
		return pair{ours + 1<<40, etcd + 1<<40}
	case 5:
		return h.at(h.rng.IntN(len(h.revs.ours)))
	default:
		return h.at(h.compacted + h.rng.IntN(len(h.revs.ours)-h.compacted))
	}
}

// Key classes the store treats differently all take part.
func (h *history) prefix() string {
	prefixes := [...]string{
		"/registry/pods/", "/registry/pods/", "/registry/pods/", "/registry/pods/", "/registry/configmaps/",
		"/registry/events/", "/registry/leases/kube-node-lease/", "/registry/leases/kube-system/", "/registry/ranges/", "/registry/masterleases/",
	}
	return prefixes[h.rng.IntN(len(prefixes))]
}

func (h *history) key() []byte {
	if h.rng.IntN(40) == 0 {
		return []byte("compact_rev_key")
	}
	return fmt.Appendf(nil, "%sns%d/name-%d", h.prefix(), h.rng.IntN(2), h.rng.IntN(6))
}

func (h *history) value() []byte {
	size := h.rng.IntN(200)
	switch h.rng.IntN(50) {
	case 0:
		size = 0
	case 1:
		size = 200 << 10
	case 2, 3, 4, 5:
		size = 5 << 10
	}
	v := make([]byte, size)
	for i := range v {
		v[i] = byte('a' + (i+h.steps)%26)
	}
	return v
}

// span is a range: often a prefix, sometimes odd.
func (h *history) span() (key, end []byte) {
	switch h.rng.IntN(12) {
	case 0:
		return []byte{0}, []byte{0}
	case 1:
		return h.key(), []byte{0}
	case 2:
		return h.key(), h.key()
	case 3:
		return h.key(), nil
	default:
		key = []byte(h.prefix())
		if h.rng.IntN(3) == 0 {
			key = fmt.Appendf(key, "ns%d/", h.rng.IntN(3))
		}
		return key, prefixEnd(key)
	}
}

func prefixEnd(key []byte) []byte {
	end := append([]byte(nil), key...)
	end[len(end)-1]++
	return end
}

func (h *history) step() {
	n := h.rng.IntN(100)
	switch {
	case n < 26:
		h.optimisticPut()
	case n < 36:
		h.optimisticDelete()
	case n < 41:
		h.get()
	case n < 51:
		h.list()
	case n < 58:
		h.rangeStream()
	case n < 63:
		h.refinedRange()
	case n < 67:
		h.plainPut()
	case n < 70:
		h.deleteRange()
	case n < 75:
		h.txn()
	case n < 80:
		h.leaseOp()
	case n < 83:
		h.mistake()
	case n < 85:
		h.compact()
	case n < 93:
		h.createWatch()
	case n < 97:
		h.cancelWatch()
	default:
		h.requestProgress()
	}
}

// compareState requires both sides to hold the same keys in the end.
func (h *history) compareState() {
	h.say("compare everything")
	h.both(func(s *side) outcome {
		r, err := s.kv.Range(h.ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return normalRange(m, r) }
	})
}
