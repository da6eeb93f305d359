package etcd

import (
	"bytes"
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mootkube/moot/gossip/store"
)

// keyOrdered tells whether the store's own order, ascending by key, is the one
// asked for. A target without an order counts as ascending by that target.
func keyOrdered(r *pb.RangeRequest) bool {
	return r.SortTarget == pb.RangeRequest_KEY && r.SortOrder != pb.RangeRequest_DESCEND
}

func revisionFiltered(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 ||
		r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// refined tells whether the answer needs work the store does not do, and so
// has to be read whole before the limit applies.
func refined(r *pb.RangeRequest) bool {
	return !keyOrdered(r) || revisionFiltered(r)
}

// refine filters, sorts and cuts a whole answer as the request asks. The count
// stays that of the range, as in etcd.
func refine(r *pb.RangeRequest, res *store.RangeResult) {
	res.KVs = slices.DeleteFunc(res.KVs, func(kv store.KeyValue) bool {
		return r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
			r.MinModRevision != 0 && kv.ModRevision < r.MinModRevision ||
			r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision ||
			r.MinCreateRevision != 0 && kv.CreateRevision < r.MinCreateRevision
	})
	if !keyOrdered(r) {
		order := ordering(r.SortTarget)
		if r.SortOrder == pb.RangeRequest_DESCEND {
			ascending := order
			order = func(a, b store.KeyValue) int { return ascending(b, a) }
		}
		slices.SortStableFunc(res.KVs, order)
	}
	if r.Limit > 0 && int64(len(res.KVs)) > r.Limit {
		res.KVs = res.KVs[:r.Limit]
		res.More = true
	}
}

func ordering(target pb.RangeRequest_SortTarget) func(a, b store.KeyValue) int {
	switch target {
	case pb.RangeRequest_VERSION:
		return func(a, b store.KeyValue) int { return cmp.Compare(a.Version, b.Version) }
	case pb.RangeRequest_CREATE:
		return func(a, b store.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case pb.RangeRequest_MOD:
		return func(a, b store.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case pb.RangeRequest_VALUE:
		return func(a, b store.KeyValue) int { return bytes.Compare(a.Value, b.Value) }
	default:
		return func(a, b store.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
	}
}
