package difftest

import (
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Answers are compared in a form that both sides' can be brought into: numbers
// that name the server or the revision scheme are gone or mapped.

// mapper maps a side's revisions to etcd's.
type mapper func(int64) int64

type kv struct {
	Key, Value           string
	Create, Mod, Version int64
	Lease                int64
}

type answer struct {
	Err       string
	Revision  int64
	Succeeded bool
	More      bool
	Count     int64
	Deleted   int64
	KVs       []kv
	Parts     []answer // of a transaction
	TTL       int64
	Leases    []int64
}

func normalKV(m mapper, in *mvccpb.KeyValue) kv {
	return kv{
		Key: string(in.Key), Value: string(in.Value),
		Create: m(in.CreateRevision), Mod: m(in.ModRevision), Version: in.Version, Lease: in.Lease,
	}
}

func normalKVs(m mapper, in []*mvccpb.KeyValue) []kv {
	var out []kv
	for _, e := range in {
		out = append(out, normalKV(m, e))
	}
	return out
}

func failed(err error) answer {
	s := status.Convert(err)
	return answer{Err: fmt.Sprintf("%s: %s", s.Code(), s.Message())}
}

func normalRange(m mapper, r *pb.RangeResponse) answer {
	return answer{Revision: m(r.Header.GetRevision()), More: r.More, Count: r.Count, KVs: normalKVs(m, r.Kvs)}
}

func normalPut(m mapper, r *pb.PutResponse) answer {
	a := answer{Revision: m(r.Header.GetRevision())}
	if r.PrevKv != nil {
		a.KVs = []kv{normalKV(m, r.PrevKv)}
	}
	return a
}

func normalDelete(m mapper, r *pb.DeleteRangeResponse) answer {
	return answer{Revision: m(r.Header.GetRevision()), Deleted: r.Deleted, KVs: normalKVs(m, r.PrevKvs)}
}

func normalTxn(m mapper, r *pb.TxnResponse) answer {
	a := answer{Revision: m(r.Header.GetRevision()), Succeeded: r.Succeeded}
	for _, op := range r.Responses {
		switch o := op.Response.(type) {
		case *pb.ResponseOp_ResponseRange:
			a.Parts = append(a.Parts, normalRange(m, o.ResponseRange))
		case *pb.ResponseOp_ResponsePut:
			a.Parts = append(a.Parts, normalPut(m, o.ResponsePut))
		case *pb.ResponseOp_ResponseDeleteRange:
			a.Parts = append(a.Parts, normalDelete(m, o.ResponseDeleteRange))
		}
	}
	// The header of an operation inside a transaction is not compared: in the
	// middle of one, our side has no revision that etcd would call its own.
	for i := range a.Parts {
		a.Parts[i].Revision = 0
	}
	return a
}

// collect reads a RangeStream to its end and holds the server to its protocol:
// header, count and more come with the last chunk and with no other.
func collect(m mapper, stream grpc.ServerStreamingClient[pb.RangeStreamResponse]) answer {
	var a answer
	var last *pb.RangeResponse
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failed(err)
		}
		if last != nil && (last.Header != nil || last.Count != 0 || last.More) {
			return answer{Err: "a chunk that is not the last carries header, count or more"}
		}
		if last != nil && len(last.Kvs) == 0 {
			return answer{Err: "a chunk that is not the last is empty"}
		}
		last = r.RangeResponse
		a.KVs = append(a.KVs, normalKVs(m, last.Kvs)...)
	}
	if last == nil || last.Header == nil {
		return answer{Err: "the stream ended without a header"}
	}
	a.Revision, a.Count, a.More = m(last.Header.Revision), last.Count, last.More
	return a
}
