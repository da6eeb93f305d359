package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mootkube/moot/gossip/store"
)

// The functions of this file turn requests into the store's. Keys and values
// are shared, never copied: a decoded request belongs to its handler.

func toRange(r *pb.RangeRequest) store.RangeRequest {
	out := store.RangeRequest{
		Key:       r.Key,
		End:       r.RangeEnd,
		Revision:  max(r.Revision, 0),
		Limit:     max(r.Limit, 0),
		KeysOnly:  r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE,
		CountOnly: r.CountOnly,
	}
	if refined(r) {
		out.Limit = 0
	}
	return out
}

func toPut(r *pb.PutRequest) store.Op {
	return store.Op{
		Kind:        store.OpPut,
		Key:         r.Key,
		Value:       r.Value,
		Lease:       r.Lease,
		IgnoreValue: r.IgnoreValue,
		IgnoreLease: r.IgnoreLease,
		PrevKV:      r.PrevKv,
	}
}

func toDelete(r *pb.DeleteRangeRequest) store.Op {
	return store.Op{Kind: store.OpDelete, Key: r.Key, End: r.RangeEnd, PrevKV: r.PrevKv}
}

// toOps expects operations that passed checkOp.
func toOps(ops []*pb.RequestOp) []store.Op {
	if len(ops) == 0 {
		return nil
	}
	out := make([]store.Op, len(ops))
	for i, op := range ops {
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			out[i] = store.Op{Kind: store.OpRange, Range: toRange(r.RequestRange)}
		case *pb.RequestOp_RequestPut:
			out[i] = toPut(r.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			out[i] = toDelete(r.RequestDeleteRange)
		}
	}
	return out
}

// toCompare expects a compare that passed checkTxn.
func toCompare(c *pb.Compare) store.Compare {
	out := store.Compare{Key: c.Key, End: c.RangeEnd}
	switch c.Target {
	case pb.Compare_VERSION:
		out.Target, out.Int = store.TargetVersion, c.GetVersion()
	case pb.Compare_CREATE:
		out.Target, out.Int = store.TargetCreate, c.GetCreateRevision()
	case pb.Compare_MOD:
		out.Target, out.Int = store.TargetMod, c.GetModRevision()
	case pb.Compare_VALUE:
		out.Target, out.Value = store.TargetValue, c.GetValue()
	case pb.Compare_LEASE:
		out.Target, out.Int = store.TargetLease, c.GetLease()
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		out.Relation = store.Equal
	case pb.Compare_GREATER:
		out.Relation = store.Greater
	case pb.Compare_LESS:
		out.Relation = store.Less
	case pb.Compare_NOT_EQUAL:
		out.Relation = store.NotEqual
	}
	return out
}

func toTxn(r *pb.TxnRequest) store.Txn {
	txn := store.Txn{Then: toOps(r.Success), Else: toOps(r.Failure)}
	if len(r.Compare) > 0 {
		txn.If = make([]store.Compare, len(r.Compare))
		for i, c := range r.Compare {
			txn.If[i] = toCompare(c)
		}
	}
	return txn
}
