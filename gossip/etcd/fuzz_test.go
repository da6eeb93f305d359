package etcd

import (
	"context"
	"log/slog"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mootkube/moot/gossip/store"
)

// FuzzKV gives any message of the KV service that protobuf can decode to a
// handler over a real store. It must be answered, or refused with a status; and
// what is answered must encode to what protobuf decodes.
func FuzzKV(f *testing.F) {
	seed := func(kind byte, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{kind}, b...))
	}
	key, end := []byte("/registry/pods/a"), []byte("/registry/pods0")
	seed(0, &pb.RangeRequest{Key: key, RangeEnd: end, Limit: -1, Revision: -5, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_VALUE, MaxModRevision: 1})
	seed(0, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, KeysOnly: true, CountOnly: true})
	seed(1, &pb.PutRequest{Key: key, Value: []byte("v"), Lease: -1, PrevKv: true})
	seed(1, &pb.PutRequest{Key: key, IgnoreValue: true, IgnoreLease: true})
	seed(2, &pb.DeleteRangeRequest{Key: end, RangeEnd: key, PrevKv: true})
	seed(3, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, RangeEnd: end, Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL, TargetUnion: &pb.Compare_Version{Version: 1}}},
		Success: []*pb.RequestOp{requestPut("/a", "1"), requestDelete("/b", "\x00"), {Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
		Failure: []*pb.RequestOp{{}, {Request: &pb.RequestOp_RequestTxn{}}},
	})
	seed(4, &pb.CompactionRequest{Revision: -1})

	cfg := store.DefaultConfig(f.TempDir())
	cfg.Log = slog.New(slog.DiscardHandler)
	s, err := store.Open(cfg)
	if err != nil {
		f.Fatal(err)
	}
	stop := start(s.Run)
	f.Cleanup(func() {
		_ = stop()
		_ = s.Close()
	})
	service := &kvService{identity: identity{1, 1}, store: s, maxTxnOps: 16}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 {
			fuzzOne(t, service, b[0], b[1:])
		}
	})
}

func fuzzOne(t *testing.T, service *kvService, kind byte, b []byte) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out answer
	var err error
	var decoded proto.Message
	switch kind % 5 {
	case 0:
		out, decoded, err = handle(ctx, service.rangeKeys, b, &pb.RangeResponse{})
	case 1:
		out, decoded, err = handle(ctx, service.put, b, &pb.PutResponse{})
	case 2:
		out, decoded, err = handle(ctx, service.deleteRange, b, &pb.DeleteRangeResponse{})
	case 3:
		out, decoded, err = handle(ctx, service.txn, b, &pb.TxnResponse{})
	default:
		r := new(pb.CompactionRequest)
		if proto.Unmarshal(b, r) == nil {
			_, err = service.compact(ctx, r)
		}
	}
	if err != nil {
		if _, ok := status.FromError(err); !ok {
			t.Fatalf("refused with %T: %v", err, err)
		}
		if ctx.Err() != nil {
			t.Fatalf("not answered in %v", time.Duration(patience))
		}
		return
	}
	if decoded != nil {
		if err := proto.Unmarshal(marshal(out).Materialize(), decoded); err != nil {
			t.Fatalf("the answer does not decode: %v", err)
		}
	}
}

// handle decodes a request and gives it to a handler. Without a request there
// is nothing to decode the answer into.
func handle[R any, A answer](ctx context.Context, handler func(context.Context, *R) (A, error), b []byte, into proto.Message) (answer, proto.Message, error) {
	r := new(R)
	if proto.Unmarshal(b, any(r).(proto.Message)) != nil {
		return nil, nil, nil
	}
	out, err := handler(ctx, r)
	return out, into, err
}
