package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mootkube/moot/gossip/store"
)

// kvService answers the KV service.
type kvService struct {
	pb.UnsafeKVServer
	identity
	store     Store
	maxTxnOps int
}

// identity fills response headers.
type identity struct {
	clusterID, memberID uint64
}

// raftTerm is shown in headers because clients expect one that is not zero;
// there is no raft here, so it never moves.
const raftTerm = 1

func (i identity) header(revision int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: i.clusterID, MemberId: i.memberID, Revision: revision, RaftTerm: raftTerm}
}

func (s *kvService) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	res, err := s.store.Range(ctx, toRange(r))
	if err != nil {
		return nil, statusError(err)
	}
	out := fromRange(r, res)
	out.Header = s.header(res.Revision)
	return out, nil
}

// RangeStream sends one consistent snapshot in chunks. Only the last one
// carries header, count and more, as in etcd; since a chunk does not know
// whether another follows, each is held back until the next has arrived.
func (s *kvService) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if r.CountOnly {
		return s.countStream(r, stream)
	}
	var held *pb.RangeResponse
	var last store.RangeResult
	err := s.store.RangeStream(stream.Context(), toRange(r), func(chunk store.RangeResult) error {
		if held != nil {
			if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: held}); err != nil {
				return err
			}
		}
		held = &pb.RangeResponse{Kvs: fromKVs(chunk.KVs, r.KeysOnly)}
		last = chunk
		return nil
	})
	if err != nil {
		return statusError(err)
	}
	if held == nil {
		held = &pb.RangeResponse{}
	}
	held.Header, held.Count, held.More = s.header(last.Revision), last.Count, last.More
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: held})
}

func (s *kvService) countStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	res, err := s.store.Range(stream.Context(), toRange(r))
	if err != nil {
		return statusError(err)
	}
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Header: s.header(res.Revision), Count: res.Count}})
}

func (s *kvService) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{toPut(r)}})
	if err != nil {
		return nil, statusError(err)
	}
	out := &pb.PutResponse{Header: s.header(res.Revision)}
	if prev := res.Results[0].Prev; len(prev) > 0 {
		out.PrevKv = fromKV(&prev[0])
	}
	return out, nil
}

func (s *kvService) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{toDelete(r)}})
	if err != nil {
		return nil, statusError(err)
	}
	result := res.Results[0]
	return &pb.DeleteRangeResponse{
		Header:  s.header(res.Revision),
		Deleted: result.Deleted,
		PrevKvs: fromKVs(result.Prev, false),
	}, nil
}

func (s *kvService) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, s.maxTxnOps); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, toTxn(r))
	if err != nil {
		return nil, statusError(err)
	}
	out := fromTxn(r, res)
	out.Header = s.header(res.Revision)
	return out, nil
}

// Compact always waits until the store has recorded the compaction; the
// request's Physical asks for no more than that here, because the space comes
// back by the store's own background work.
func (s *kvService) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if err := s.store.Compact(ctx, r.Revision); err != nil {
		return nil, statusError(err)
	}
	return &pb.CompactionResponse{Header: s.header(s.store.Revision())}, nil
}
