package difftest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestLeaseExpiry: when a lease runs out its keys go, in the same order, and a
// watch shows it. This is apart from the histories because it takes time.
func TestLeaseExpiry(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h := &history{t: t, ctx: ctx, rng: rand.New(rand.NewPCG(1, 0)), ours: startOurs(t), etcd: startEtcd(t)}
	h.noteHeads()
	h.openStream()
	p := h.streams[0]
	defer p.close()
	for _, c := range []*clientStream{p.ours, p.etcd} {
		c.send(h, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("/registry/"), RangeEnd: []byte("/registry0"), WatchId: 1, PrevKv: true,
		}}})
		c.await(h, "create the watch", nil, func() bool { return c.logs[1] != nil && c.logs[1].created })
	}
	p.watches = []watchPair{{id: 1, what: "the watch"}}
	h.both(func(s *side) outcome {
		r, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 2})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return answer{Revision: m(r.Header.Revision), TTL: r.TTL} }
	})
	put := func(key string, lease int64) {
		h.both(func(s *side) outcome {
			r, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: lease})
			if err != nil {
				return failure(err)
			}
			return func(m mapper) answer { return normalPut(m, r) }
		})
	}
	const events = 7 // five puts, and the deletes of the two keys that stayed attached
	for _, key := range []string{"/registry/events/b", "/registry/pods/a"} {
		put(key, 7)
	}
	put("/registry/events/c", 7)
	put("/registry/events/c", 0) // not attached any more
	put("/registry/pods/z", 0)
	for _, c := range []*clientStream{p.ours, p.etcd} {
		c.await(h, fmt.Sprintf("show %d events", events), nil, func() bool { return len(c.logs[1].events) == events })
	}
	h.noteHeads()
	h.syncWatches()
	h.compareState()
	h.both(func(s *side) outcome {
		r, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 7})
		if err != nil {
			return failure(err)
		}
		return func(m mapper) answer { return answer{Revision: m(r.Header.Revision), TTL: r.TTL} }
	})
}
