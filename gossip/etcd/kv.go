package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/mootkube/moot/gossip/store"
)

// kvService answers the KV service.
type kvService struct {
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

func (i identity) headerMessage(revision int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: i.clusterID, MemberId: i.memberID, Revision: revision, RaftTerm: raftTerm}
}

// kvDesc describes the KV service to gRPC. The generated description wants
// generated messages for answers, see [answer].
func kvDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: pb.KV_ServiceDesc.ServiceName,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("Range", (*kvService).rangeKeys),
			unary("Put", (*kvService).put),
			unary("DeleteRange", (*kvService).deleteRange),
			unary("Txn", (*kvService).txn),
			unary("Compact", (*kvService).compact),
		},
		Streams: []grpc.StreamDesc{{
			StreamName:    "RangeStream",
			ServerStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				r := new(pb.RangeRequest)
				if err := stream.RecvMsg(r); err != nil {
					return err
				}
				return srv.(*kvService).rangeStream(r, stream)
			},
		}},
		Metadata: pb.KV_ServiceDesc.Metadata,
	}
}

// unary describes a method to gRPC.
func unary[R, A any](name string, handle func(*kvService, context.Context, *R) (A, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			r := new(R)
			if err := decode(r); err != nil {
				return nil, err
			}
			return handle(srv.(*kvService), ctx, r)
		},
	}
}

func (s *kvService) rangeKeys(ctx context.Context, r *pb.RangeRequest) (*rangeAnswer, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	res, err := s.store.Range(ctx, toRange(r))
	if err != nil {
		return nil, statusError(err)
	}
	return newRangeAnswer(&header{s.identity, res.Revision}, r, res), nil
}

// rangeStream sends one consistent snapshot in chunks. Only the last one
// carries header, count and more, as in etcd; since a chunk does not know
// whether another follows, each is held back until the next has arrived.
func (s *kvService) rangeStream(r *pb.RangeRequest, stream grpc.ServerStream) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if r.CountOnly {
		return s.countStream(r, stream)
	}
	var held store.RangeResult
	started := false
	err := s.store.RangeStream(stream.Context(), toRange(r), func(chunk store.RangeResult) error {
		if started {
			if err := stream.SendMsg(streamAnswer{&rangeAnswer{kvs: held.KVs, keysOnly: r.KeysOnly}}); err != nil {
				return err
			}
		}
		held, started = chunk, true
		return nil
	})
	if err != nil {
		return statusError(err)
	}
	return stream.SendMsg(streamAnswer{newRangeAnswer(&header{s.identity, held.Revision}, r, held)})
}

func (s *kvService) countStream(r *pb.RangeRequest, stream grpc.ServerStream) error {
	res, err := s.store.Range(stream.Context(), toRange(r))
	if err != nil {
		return statusError(err)
	}
	return stream.SendMsg(streamAnswer{&rangeAnswer{header: &header{s.identity, res.Revision}, count: res.Count}})
}

func (s *kvService) put(ctx context.Context, r *pb.PutRequest) (*putAnswer, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{toPut(r)}})
	if err != nil {
		return nil, statusError(err)
	}
	return &putAnswer{header: header{s.identity, res.Revision}, prev: res.Results[0].Prev}, nil
}

func (s *kvService) deleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*deleteAnswer, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{toDelete(r)}})
	if err != nil {
		return nil, statusError(err)
	}
	result := &res.Results[0]
	return &deleteAnswer{header: header{s.identity, res.Revision}, deleted: result.Deleted, prev: result.Prev}, nil
}

func (s *kvService) txn(ctx context.Context, r *pb.TxnRequest) (*txnAnswer, error) {
	if err := checkTxn(r, s.maxTxnOps); err != nil {
		return nil, err
	}
	res, err := s.store.Txn(ctx, toTxn(r))
	if err != nil {
		return nil, statusError(err)
	}
	return newTxnAnswer(header{s.identity, res.Revision}, r, res), nil
}

// compact always waits until the store has recorded the compaction; the
// request's Physical asks for no more than that here, because the space comes
// back by the store's own background work.
func (s *kvService) compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if err := s.store.Compact(ctx, r.Revision); err != nil {
		return nil, statusError(err)
	}
	return &pb.CompactionResponse{Header: s.headerMessage(s.store.Revision())}, nil
}
