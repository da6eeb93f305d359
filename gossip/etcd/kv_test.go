package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mootkube/moot/gossip/store"
)

func requestPut(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func requestDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

// TestHeaderRevisionIsTheWritesOwn: clients take a write's header revision for
// the object's version, so others writing meanwhile must not move it.
func TestHeaderRevisionIsTheWritesOwn(t *testing.T) {
	kv := serve(t, nil).kv()
	group, ctx := errgroup.WithContext(t.Context())
	for client := range 8 {
		group.Go(func() error {
			for n := range 100 {
				key := fmt.Appendf(nil, "/k/%d", (client+n)%5)
				put, err := kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{requestPut(string(key), fmt.Sprintf("%d-%d", client, n))}})
				if err != nil {
					return err
				}
				got, err := kv.Range(ctx, &pb.RangeRequest{Key: key, Revision: put.Header.Revision})
				if err != nil {
					return err
				}
				if len(got.Kvs) != 1 || got.Kvs[0].ModRevision != put.Header.Revision || string(got.Kvs[0].Value) != fmt.Sprintf("%d-%d", client, n) {
					return fmt.Errorf("put at %d, read there: %v", put.Header.Revision, got.Kvs)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestOptimisticPutsLoseNothing: of those that try to replace one version, one
// wins, and the losers are told the version that did.
func TestOptimisticPutsLoseNothing(t *testing.T) {
	kv := serve(t, nil).kv()
	const clients, each = 8, 50
	group, ctx := errgroup.WithContext(t.Context())
	for range clients {
		group.Go(func() error {
			rev, count := int64(0), 0
			for done := 0; done < each; {
				r, err := kv.Txn(ctx, &pb.TxnRequest{
					Compare: []*pb.Compare{{Key: []byte("/count"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: rev}}},
					Success: []*pb.RequestOp{requestPut("/count", fmt.Sprint(count+1))},
					Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("/count")}}}},
				})
				if err != nil {
					return err
				}
				if r.Succeeded {
					rev, count, done = r.Header.Revision, count+1, done+1
					continue
				}
				now := r.Responses[0].GetResponseRange().Kvs[0]
				rev = now.ModRevision
				if _, err := fmt.Sscan(string(now.Value), &count); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	r, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("/count")})
	if err != nil || string(r.Kvs[0].Value) != fmt.Sprint(clients*each) || r.Kvs[0].Version != clients*each {
		t.Errorf("counted to %v, %v", r.Kvs, err)
	}
}

// TestRangeStreamIsOneSnapshot reads a long list while it is being rewritten.
func TestRangeStreamIsOneSnapshot(t *testing.T) {
	s := serve(t, nil)
	const keys = 1500
	value := strings.Repeat("x", 4<<10)
	for i := 0; i < keys; i += 100 {
		var ops []store.Op
		for j := range 100 {
			ops = append(ops, store.Op{Kind: store.OpPut, Key: fmt.Appendf(nil, "/l/%05d", i+j), Value: []byte(value)})
		}
		s.write(ops...)
	}
	writing, stopWriting := context.WithCancel(t.Context())
	defer stopWriting()
	group, writing := errgroup.WithContext(writing)
	group.Go(func() error {
		for n := 0; writing.Err() == nil; n++ {
			_, err := s.store.Txn(writing, store.Txn{Then: []store.Op{{Kind: store.OpDelete, Key: fmt.Appendf(nil, "/l/%05d", n%keys)}}})
			if err == nil {
				_, err = s.store.Txn(writing, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: fmt.Appendf(nil, "/l/%05d", n%keys), Value: []byte("new")}}})
			}
			if err != nil && writing.Err() == nil {
				return err
			}
		}
		return nil
	})
	kv := s.kv()
	for range 3 {
		streamed, chunks := collectStream(t, kv, &pb.RangeRequest{Key: []byte("/l/"), RangeEnd: []byte("/l0")})
		if chunks < 2 {
			t.Errorf("%d MiB came in %d chunk", len(streamed.Kvs)*len(value)>>20, chunks)
		}
		pinned, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("/l/"), RangeEnd: []byte("/l0"), Revision: streamed.Header.Revision})
		if err != nil {
			t.Fatal(err)
		}
		if streamed.Count != pinned.Count || len(streamed.Kvs) != len(pinned.Kvs) || streamed.More {
			t.Fatalf("streamed %d of %d, ranged %d of %d", len(streamed.Kvs), streamed.Count, len(pinned.Kvs), pinned.Count)
		}
		for i, kv := range streamed.Kvs {
			if kv.ModRevision != pinned.Kvs[i].ModRevision || !bytes.Equal(kv.Value, pinned.Kvs[i].Value) {
				t.Fatalf("streamed %s at %d, ranged at %d", kv.Key, kv.ModRevision, pinned.Kvs[i].ModRevision)
			}
		}
	}
	stopWriting()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// collectStream puts the chunks of a RangeStream together.
func collectStream(t *testing.T, kv pb.KVClient, r *pb.RangeRequest) (whole *pb.RangeResponse, chunks int) {
	t.Helper()
	stream, err := kv.RangeStream(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	whole = &pb.RangeResponse{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, chunks
		}
		if err != nil {
			t.Fatal(err)
		}
		chunks++
		chunk := m.RangeResponse
		whole.Kvs = append(whole.Kvs, chunk.Kvs...)
		whole.Header, whole.Count, whole.More = chunk.Header, chunk.Count, chunk.More
	}
}

// TestRangeStreamSaysWhenTheLimitCut: a client pages on by More and Count.
func TestRangeStreamSaysWhenTheLimitCut(t *testing.T) {
	s := serve(t, nil)
	for i := range 7 {
		s.put(fmt.Sprintf("/l/%d", i), "v")
	}
	kv := s.kv()
	for limit, want := range map[int64]struct {
		keys int
		more bool
	}{0: {7, false}, 3: {3, true}, 6: {6, true}, 7: {7, false}, 8: {7, false}} {
		got, _ := collectStream(t, kv, &pb.RangeRequest{Key: []byte("/l/"), RangeEnd: []byte("/l0"), Limit: limit})
		if len(got.Kvs) != want.keys || got.More != want.more || got.Count != 7 {
			t.Errorf("limit %d: %d keys of %d, more %v", limit, len(got.Kvs), got.Count, got.More)
		}
	}
	got, chunks := collectStream(t, kv, &pb.RangeRequest{Key: []byte("/none/"), RangeEnd: []byte("/none0")})
	if len(got.Kvs) != 0 || got.Header == nil || chunks != 1 {
		t.Errorf("an empty list is %v in %d chunks", got, chunks)
	}
	for name, r := range map[string]*pb.RangeRequest{
		"sorted":   {Key: []byte("/l/"), SortOrder: pb.RangeRequest_DESCEND},
		"filtered": {Key: []byte("/l/"), MinModRevision: 1},
	} {
		stream, err := kv.RangeStream(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusedTransactions(t *testing.T) {
	kv := serve(t, nil).kv()
	inner := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}}
	many := make([]*pb.RequestOp, 129)
	for i := range many {
		many[i] = requestDelete(fmt.Sprintf("/%d", i), "")
	}
	for name, c := range map[string]struct {
		txn  *pb.TxnRequest
		code codes.Code
		text string
	}{
		"nested":          {&pb.TxnRequest{Success: []*pb.RequestOp{inner}}, codes.Unimplemented, "put its operations into the outer one"},
		"nested, else":    {&pb.TxnRequest{Failure: []*pb.RequestOp{inner}}, codes.Unimplemented, "put its operations into the outer one"},
		"129 operations":  {&pb.TxnRequest{Failure: many}, codes.InvalidArgument, rpctypes.ErrorDesc(rpctypes.ErrGRPCTooManyOps)},
		"put twice":       {&pb.TxnRequest{Success: []*pb.RequestOp{requestPut("/a", ""), requestPut("/a", "")}}, codes.InvalidArgument, rpctypes.ErrorDesc(rpctypes.ErrGRPCDuplicateKey)},
		"put and delete":  {&pb.TxnRequest{Success: []*pb.RequestOp{requestPut("/b", ""), requestDelete("/a", "/c")}}, codes.InvalidArgument, rpctypes.ErrorDesc(rpctypes.ErrGRPCDuplicateKey)},
		"unknown compare": {&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("/a"), Target: 17}}}, codes.InvalidArgument, "does not know"},
	} {
		_, err := kv.Txn(t.Context(), c.txn)
		if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for name, c := range map[string]struct {
		ops  []*pb.RequestOp
		want bool
	}{
		"none":                   {nil, false},
		"two keys":               {[]*pb.RequestOp{requestPut("a", ""), requestPut("b", "")}, false},
		"one key twice":          {[]*pb.RequestOp{requestPut("a", ""), requestPut("a", "")}, true},
		"deleted twice":          {[]*pb.RequestOp{requestDelete("a", ""), requestDelete("a", "z")}, false},
		"put before the range":   {[]*pb.RequestOp{requestPut("a", ""), requestDelete("b", "c")}, false},
		"put at the range":       {[]*pb.RequestOp{requestDelete("b", "c"), requestPut("b", "")}, true},
		"put at the range's end": {[]*pb.RequestOp{requestPut("c", ""), requestDelete("b", "c")}, false},
		"deleted from a key on":  {[]*pb.RequestOp{requestPut("x", ""), requestDelete("b", "\x00")}, true},
		"put and deleted":        {[]*pb.RequestOp{requestPut("x", ""), requestDelete("x", "")}, true},
	} {
		if got := overlaps(c.ops); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestStatusErrors: clients recognise etcd's errors by their text.
func TestStatusErrors(t *testing.T) {
	for in, want := range map[error]error{
		store.ErrCompacted:      rpctypes.ErrCompacted,
		store.ErrFutureRevision: rpctypes.ErrFutureRev,
		store.ErrLeaseNotFound:  rpctypes.ErrLeaseNotFound,
		store.ErrLeaseExists:    rpctypes.ErrLeaseExist,
		store.ErrKeyNotFound:    rpctypes.ErrKeyNotFound,
		store.ErrTooLarge:       rpctypes.ErrRequestTooLarge,
		store.ErrNoSpace:        rpctypes.ErrNoSpace,
		store.ErrDuplicateKey:   rpctypes.ErrDuplicateKey,
		store.ErrClosed:         rpctypes.ErrStopped,
	} {
		if got := rpctypes.Error(statusError(fmt.Errorf("wrapped: %w", in))); !errors.Is(got, want) {
			t.Errorf("%v becomes %v for a client, want %v", in, got, want)
		}
	}
	if got := statusError(context.DeadlineExceeded); status.Code(got) != codes.DeadlineExceeded {
		t.Errorf("a deadline becomes %v", got)
	}
	if got := statusError(errors.New("disk on fire")); status.Code(got) != codes.Unknown || !strings.Contains(got.Error(), "disk on fire") {
		t.Errorf("any other becomes %v", got)
	}
}

func TestRefine(t *testing.T) {
	kvs := func() []store.KeyValue {
		return []store.KeyValue{
			{Key: []byte("a"), Value: []byte("z"), CreateRevision: 1, ModRevision: 9, Version: 5},
			{Key: []byte("b"), Value: []byte("y"), CreateRevision: 2, ModRevision: 8, Version: 6},
			{Key: []byte("c"), Value: []byte("x"), CreateRevision: 3, ModRevision: 7, Version: 4},
		}
	}
	for name, c := range map[string]struct {
		r    *pb.RangeRequest
		want string
		more bool
	}{
		"by key":                {&pb.RangeRequest{}, "abc", false},
		"by key, descending":    {&pb.RangeRequest{SortOrder: pb.RangeRequest_DESCEND}, "cba", false},
		"by version":            {&pb.RangeRequest{SortTarget: pb.RangeRequest_VERSION}, "cab", false},
		"by create":             {&pb.RangeRequest{SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND}, "cba", false},
		"by mod":                {&pb.RangeRequest{SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_ASCEND}, "cba", false},
		"by value":              {&pb.RangeRequest{SortTarget: pb.RangeRequest_VALUE}, "cba", false},
		"limited after sorting": {&pb.RangeRequest{SortTarget: pb.RangeRequest_VERSION, Limit: 2}, "ca", true},
		"min mod":               {&pb.RangeRequest{MinModRevision: 8}, "ab", false},
		"max mod":               {&pb.RangeRequest{MaxModRevision: 8}, "bc", false},
		"min create":            {&pb.RangeRequest{MinCreateRevision: 2}, "bc", false},
		"max create, limited":   {&pb.RangeRequest{MaxCreateRevision: 2, Limit: 1}, "a", true},
	} {
		res := store.RangeResult{KVs: kvs(), Count: 3}
		refine(c.r, &res)
		var got strings.Builder
		for _, kv := range res.KVs {
			got.WriteString(string(kv.Key))
		}
		if got.String() != c.want || res.More != c.more || res.Count != 3 {
			t.Errorf("%s: %s, more %v, count %d", name, got.String(), res.More, res.Count)
		}
	}
}
