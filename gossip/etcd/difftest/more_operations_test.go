package difftest

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// txn has several compares and operations.
func (h *history) txn() {
	type compare struct {
		key, end []byte
		target   pb.Compare_CompareTarget
		result   pb.Compare_CompareResult
		rev      pair
		number   int64
		value    []byte
	}
	compares := make([]compare, h.rng.IntN(4))
	for i := range compares {
		c := &compares[i]
		c.key = h.key()
		if h.rng.IntN(4) == 0 {
			c.key, c.end = h.span()
		}
		c.target = pb.Compare_CompareTarget(h.rng.IntN(5))
		c.result = pb.Compare_CompareResult(h.rng.IntN(4))
		c.rev, c.number, c.value = h.at(h.rng.IntN(len(h.revs.ours))), int64(h.rng.IntN(3)), h.value()
		if c.target == pb.Compare_LEASE {
			c.number = h.someLease()
		}
	}
	success, failure := h.ops(), h.ops()
	h.say("transaction of %d compares, %d and %d operations", len(compares), len(success), len(failure))
	h.doTxn(func(s *side) *pb.TxnRequest {
		r := &pb.TxnRequest{Success: success, Failure: failure}
		for _, c := range compares {
			m := &pb.Compare{Key: c.key, RangeEnd: c.end, Target: c.target, Result: c.result}
			switch c.target {
			case pb.Compare_VERSION:
				m.TargetUnion = &pb.Compare_Version{Version: c.number}
			case pb.Compare_CREATE:
				m.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: c.rev.of(h, s)}
			case pb.Compare_MOD:
				m.TargetUnion = &pb.Compare_ModRevision{ModRevision: c.rev.of(h, s)}
			case pb.Compare_VALUE:
				m.TargetUnion = &pb.Compare_Value{Value: c.value}
			case pb.Compare_LEASE:
				m.TargetUnion = &pb.Compare_Lease{Lease: c.number}
			}
			r.Compare = append(r.Compare, m)
		}
		return r
	})
}

// ops makes a branch; that some are refused for overlapping is intended.
func (h *history) ops() []*pb.RequestOp {
	var out []*pb.RequestOp
	for range h.rng.IntN(5) {
		switch h.rng.IntN(4) {
		case 0, 1:
			out = append(out, opPut(&pb.PutRequest{Key: h.key(), Value: h.value(), Lease: h.someLease(), PrevKv: h.rng.IntN(2) == 0}))
		case 2:
			out = append(out, opDelete(&pb.DeleteRangeRequest{Key: h.key(), PrevKv: h.rng.IntN(2) == 0}))
		default:
			key, end := h.span()
			out = append(out, opGet(&pb.RangeRequest{Key: key, RangeEnd: end, Limit: int64(h.rng.IntN(4))}))
		}
	}
	return out
}

// someLease is none most of the time, seldom one that does not exist.
func (h *history) someLease() int64 {
	switch n := h.rng.IntN(30); {
	case n == 0:
		return 999_999
	case n < 6 && len(h.leases) > 0:
		return h.leases[h.rng.IntN(len(h.leases))]
	}
	return 0
}

func (h *history) leaseOp() {
	id := h.someLease()
	switch h.rng.IntN(6) {
	case 0, 1:
		h.grant()
	case 2:
		h.say("revoke lease %d", id)
		h.both(func(s *side) outcome {
			r, err := s.lease.LeaseRevoke(h.ctx, &pb.LeaseRevokeRequest{ID: id})
			if err != nil {
				return failure(err)
			}
			return func(m mapper) answer { return answer{Revision: m(r.Header.Revision)} }
		})
	case 3:
		h.say("keep lease %d alive", id)
		h.both(func(s *side) outcome { return h.keepAlive(s, id) })
	case 4:
		keys := h.rng.IntN(2) == 0
		h.say("time to live of lease %d, keys %v", id, keys)
		h.both(func(s *side) outcome {
			r, err := s.lease.LeaseTimeToLive(h.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
			if err != nil {
				return failure(err)
			}
			return func(m mapper) answer {
				a := answer{Revision: m(r.Header.Revision), TTL: r.GrantedTTL, Succeeded: r.TTL > 0}
				for _, k := range r.Keys {
					a.KVs = append(a.KVs, kv{Key: string(k)})
				}
				sortKVs(a.KVs)
				return a
			}
		})
	default:
		h.say("list leases")
		h.both(func(s *side) outcome {
			r, err := s.lease.LeaseLeases(h.ctx, &pb.LeaseLeasesRequest{})
			if err != nil {
				return failure(err)
			}
			return func(m mapper) answer {
				a := answer{Revision: m(r.Header.Revision)}
				for _, l := range r.Leases {
					a.Leases = append(a.Leases, l.ID)
				}
				sortInts(a.Leases)
				return a
			}
		})
	}
}

func (h *history) grant() {
	h.nextLease++
	id, ttl := h.nextLease, int64(600+h.rng.IntN(600))
	if h.rng.IntN(5) == 0 && len(h.leases) > 0 {
		id = h.leases[0] // in use, or once was
	}
	if h.rng.IntN(20) == 0 {
		ttl = 9_000_000_001
	}
	h.say("grant lease %d for %d s", id, ttl)
	a, _ := h.both(func(s *side) outcome {
		r, err := s.lease.LeaseGrant(h.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer {
			return answer{Revision: m(r.Header.Revision), TTL: r.TTL, Leases: []int64{r.ID}}
		}
	})
	if a.Err == "" {
		h.leases = append(h.leases, id)
	}
}

func (h *history) keepAlive(s *side, id int64) outcome {
	stream, err := s.lease.LeaseKeepAlive(h.ctx)
	if err != nil {
		return failure(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
		return failure(err)
	}
	r, err := stream.Recv()
	if err != nil {
		return failure(err)
	}
	if err := stream.CloseSend(); err != nil {
		return failure(err)
	}
	return func(m mapper) answer {
		return answer{Revision: m(r.Header.Revision), TTL: r.TTL, Leases: []int64{r.ID}}
	}
}

// mistake is a request both must refuse, in the same words.
func (h *history) mistake() {
	key := h.key()
	put := func(r *pb.PutRequest) func(*side) outcome {
		return func(s *side) outcome {
			if _, err := s.kv.Put(h.ctx, r); err != nil {
				return failure(err)
			}
			return func(mapper) answer { return answer{} }
		}
	}
	txn := func(r *pb.TxnRequest) func(*side) outcome {
		return func(s *side) outcome {
			if _, err := s.kv.Txn(h.ctx, r); err != nil {
				return failure(err)
			}
			return func(mapper) answer { return answer{} }
		}
	}
	many := make([]*pb.RequestOp, 129)
	for i := range many {
		many[i] = opGet(&pb.RangeRequest{Key: key})
	}
	mistakes := []func(*side) outcome{
		put(&pb.PutRequest{}),
		put(&pb.PutRequest{Key: key, Value: []byte("v"), IgnoreValue: true}),
		put(&pb.PutRequest{Key: key, Lease: 1, IgnoreLease: true}),
		put(&pb.PutRequest{Key: key, Lease: 777}),
		put(&pb.PutRequest{Key: []byte("/registry/absent"), IgnoreValue: true}),
		put(&pb.PutRequest{Key: key, Value: bytes.Repeat([]byte("x"), 1600<<10)}),
		txn(&pb.TxnRequest{Success: many}),
		txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut(&pb.PutRequest{Key: key}), opPut(&pb.PutRequest{Key: key})}}),
		txn(&pb.TxnRequest{Failure: []*pb.RequestOp{opPut(&pb.PutRequest{Key: key}), opDelete(&pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0")})}}),
		txn(&pb.TxnRequest{Success: []*pb.RequestOp{{}}}),
		txn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}),
		txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut(&pb.PutRequest{Key: []byte("/registry/absent"), IgnoreLease: true})}}),
	}
	i := h.rng.IntN(len(mistakes))
	h.say("mistake %d on %s", i, key)
	h.both(mistakes[i])
}
