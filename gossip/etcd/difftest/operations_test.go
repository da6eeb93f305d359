package difftest

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func (h *history) doTxn(request func(s *side) *pb.TxnRequest) (ours, theirs answer) {
	h.t.Helper()
	return h.both(func(s *side) outcome {
		r, err := s.kv.Txn(h.ctx, request(s))
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return normalTxn(m, r) }
	})
}

func (h *history) doRange(request func(s *side) *pb.RangeRequest) {
	h.t.Helper()
	h.both(func(s *side) outcome {
		q := request(s)
		r, err := s.kv.Range(h.ctx, q)
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer {
			a := normalRange(m, r)
			if q.KeysOnly {
				// etcd 3.7 answers from its index and leaves the lease out.
				for i := range a.KVs {
					a.KVs[i].Lease = 0
				}
			}
			if q.SortTarget != pb.RangeRequest_KEY {
				// etcd's sort is not stable: the order of equals is left open.
				slices.SortFunc(a.KVs, func(x, y kv) int { return cmpString(x.Key, y.Key) })
			}
			return a
		}
	})
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// modRevision reads the revision an apiserver would send back with an update.
func (h *history) modRevision(key []byte) pair {
	h.t.Helper()
	read := func(s *side) int64 {
		r, err := s.kv.Range(h.ctx, &pb.RangeRequest{Key: key})
		if err != nil {
			h.fail("read %s from %s: %v", key, s.name, err)
		}
		if len(r.Kvs) == 0 {
			return 0
		}
		return r.Kvs[0].ModRevision
	}
	p := pair{read(h.ours), read(h.etcd)}
	if p.ours != 0 {
		h.seen = append(h.seen, p)
	}
	return p
}

// expected is the right revision most of the time, else an older one or that
// of another key. The latter is passed over where it is right in etcd alone:
// keys that one transaction changed share a revision there, and not here.
func (h *history) expected(key []byte) pair {
	h.t.Helper()
	right := h.modRevision(key)
	if h.rng.IntN(5) != 0 || len(h.seen) == 0 {
		return right
	}
	other := h.seen[h.rng.IntN(len(h.seen))]
	if other.etcd == right.etcd {
		return right
	}
	return other
}

func modIs(key []byte, rev int64) []*pb.Compare {
	return []*pb.Compare{{
		Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
	}}
}

func opPut(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func opGet(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opDelete(r *pb.DeleteRangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
}

func (h *history) optimisticPut() {
	key, value, lease := h.key(), h.value(), h.someLease()
	want := h.expected(key)
	h.say("put %s (%d bytes, lease %d) if mod = %v", key, len(value), lease, want)
	h.doTxn(func(s *side) *pb.TxnRequest {
		return &pb.TxnRequest{
			Compare: modIs(key, want.of(h, s)),
			Success: []*pb.RequestOp{opPut(&pb.PutRequest{Key: key, Value: value, Lease: lease})},
			Failure: []*pb.RequestOp{opGet(&pb.RangeRequest{Key: key})},
		}
	})
}

func (h *history) optimisticDelete() {
	key := h.key()
	want := h.expected(key)
	h.say("delete %s if mod = %v", key, want)
	h.doTxn(func(s *side) *pb.TxnRequest {
		return &pb.TxnRequest{
			Compare: modIs(key, want.of(h, s)),
			Success: []*pb.RequestOp{opDelete(&pb.DeleteRangeRequest{Key: key})},
			Failure: []*pb.RequestOp{opGet(&pb.RangeRequest{Key: key})},
		}
	})
}

func (h *history) get() {
	key, rev := h.key(), h.someRevision()
	h.say("get %s at %v", key, rev)
	h.doRange(func(s *side) *pb.RangeRequest {
		return &pb.RangeRequest{Key: key, Revision: rev.of(h, s), Limit: 1}
	})
}

func (h *history) list() {
	key, end := h.span()
	rev, limit := h.someRevision(), int64(h.rng.IntN(4)*h.rng.IntN(4))
	keysOnly, countOnly, serializable := h.rng.IntN(8) == 0, h.rng.IntN(8) == 0, h.rng.IntN(8) == 0
	h.say("list %q..%q at %v, limit %d, keys %v, count %v", key, end, rev, limit, keysOnly, countOnly)
	h.doRange(func(s *side) *pb.RangeRequest {
		return &pb.RangeRequest{
			Key: key, RangeEnd: end, Revision: rev.of(h, s), Limit: limit,
			KeysOnly: keysOnly, CountOnly: countOnly, Serializable: serializable,
		}
	})
}

// refinedRange sorts and filters.
func (h *history) refinedRange() {
	key, end := h.span()
	target := pb.RangeRequest_SortTarget(h.rng.IntN(5))
	order := pb.RangeRequest_SortOrder(1 + h.rng.IntN(2))
	limit := int64(0)
	if target == pb.RangeRequest_KEY {
		limit = int64(h.rng.IntN(6))
	}
	var bounds [4]pair
	for i := range bounds {
		if h.rng.IntN(3) == 0 {
			bounds[i] = h.at(h.rng.IntN(len(h.revs.ours)))
			if i%2 == 0 {
				bounds[i] = h.from(h.rng.IntN(len(h.revs.ours)))
			}
		}
	}
	h.say("range %q..%q sorted by %v %v, limit %d, bounds %v", key, end, target, order, limit, bounds)
	h.doRange(func(s *side) *pb.RangeRequest {
		return &pb.RangeRequest{
			Key: key, RangeEnd: end, SortTarget: target, SortOrder: order, Limit: limit,
			MinModRevision: bounds[0].of(h, s), MaxModRevision: bounds[1].of(h, s),
			MinCreateRevision: bounds[2].of(h, s), MaxCreateRevision: bounds[3].of(h, s),
		}
	})
}

// rangeStream lists as an apiserver does: from a prefix or where a page ended.
func (h *history) rangeStream() {
	key, end := h.span()
	if h.rng.IntN(3) == 0 && len(end) > 1 {
		key = append(h.key(), 0)
	}
	rev, limit, count := h.someRevision(), int64(h.rng.IntN(3)*h.rng.IntN(12)), h.rng.IntN(10) == 0
	h.say("stream %q..%q at %v, limit %d, count %v", key, end, rev, limit, count)
	h.both(func(s *side) outcome {
		stream, err := s.kv.RangeStream(h.ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Revision: rev.of(h, s), Limit: limit, CountOnly: count})
		if err != nil {
			return failure(err)
		}
		a := collect(func(r int64) int64 { return r }, stream)
		return func(m mapper) answer { return a.mapped(m) }
	})
}

// mapped maps an answer that was taken with raw revisions.
func (a answer) mapped(m mapper) answer {
	a.Revision = m(a.Revision)
	a.KVs = slices.Clone(a.KVs)
	for i := range a.KVs {
		a.KVs[i].Create, a.KVs[i].Mod = m(a.KVs[i].Create), m(a.KVs[i].Mod)
	}
	return a
}

func (h *history) plainPut() {
	request := &pb.PutRequest{Key: h.key(), Value: h.value(), Lease: h.someLease(), PrevKv: h.rng.IntN(2) == 0}
	switch h.rng.IntN(5) {
	case 0:
		// Without a lease: of two mistakes at once either may be reported.
		request.Value, request.Lease, request.IgnoreValue = nil, 0, true
	case 1:
		request.Lease, request.IgnoreLease = 0, true
	}
	h.say("put %s (%d bytes, lease %d), ignore value %v lease %v", request.Key, len(request.Value), request.Lease, request.IgnoreValue, request.IgnoreLease)
	h.both(func(s *side) outcome {
		r, err := s.kv.Put(h.ctx, request)
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return normalPut(m, r) }
	})
}

func (h *history) deleteRange() {
	key, end := h.span()
	if h.rng.IntN(4) != 0 { // seldom everything
		key = fmt.Appendf(nil, "%sns%d/name-%d", h.prefix(), h.rng.IntN(2), h.rng.IntN(6))
		end = append(slices.Clone(key[:len(key)-1]), key[len(key)-1]+byte(h.rng.IntN(3)))
	}
	prev := h.rng.IntN(2) == 0
	h.say("delete %q..%q", key, end)
	h.both(func(s *side) outcome {
		r, err := s.kv.DeleteRange(h.ctx, &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: prev})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return normalDelete(m, r) }
	})
}

func (h *history) compact() {
	h.syncWatches() // what was not delivered before may rightly differ after
	i := h.rng.IntN(len(h.revs.ours))
	if i < h.compacted && h.rng.IntN(4) != 0 {
		i = h.compacted + h.rng.IntN(len(h.revs.ours)-h.compacted)
	}
	rev := h.at(i)
	if h.rng.IntN(10) == 0 {
		rev = pair{rev.ours + 1<<40, rev.etcd + 1<<40}
	}
	h.say("compact %v", rev)
	a, _ := h.both(func(s *side) outcome {
		r, err := s.kv.Compact(h.ctx, &pb.CompactionRequest{Revision: rev.of(h, s), Physical: true})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return answer{Revision: m(r.Header.Revision)} }
	})
	if a.Err == "" {
		h.compacted = i
	}
}
