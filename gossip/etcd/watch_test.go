package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mootkube/moot/gossip/store"
)

// testWatch is a watch stream as a client sees it.
type testWatch struct {
	t      *testing.T
	stream pb.Watch_WatchClient
}

// watch opens a stream, creates watches on it and takes their answers.
func (s *testServer) watch(creates ...*pb.WatchCreateRequest) *testWatch {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	s.t.Cleanup(cancel)
	stream, err := pb.NewWatchClient(s.dial()).Watch(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	w := &testWatch{t: s.t, stream: stream}
	for _, c := range creates {
		w.create(c)
	}
	return w
}

func (w *testWatch) send(r *pb.WatchRequest) {
	w.t.Helper()
	if err := w.stream.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *testWatch) next() *pb.WatchResponse {
	w.t.Helper()
	r, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func createRequest(c *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}}
}

func cancelRequest(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func progressRequest() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

func (w *testWatch) create(c *pb.WatchCreateRequest) *pb.WatchResponse {
	w.t.Helper()
	w.send(createRequest(c))
	r := w.next()
	if !r.Created {
		w.t.Fatalf("created is answered with %v", r)
	}
	return r
}

// events reads responses until n events have come.
func (w *testWatch) events(n int) []*mvccpb.Event {
	w.t.Helper()
	var out []*mvccpb.Event
	for len(out) < n {
		r := w.next()
		if len(r.Events) == 0 {
			w.t.Fatalf("instead of events came %v", r)
		}
		out = append(out, r.Events...)
	}
	return out
}

func describe(events []*mvccpb.Event) string {
	var out []string
	for _, e := range events {
		text := fmt.Sprintf("%s %s=%s", e.Type, e.Kv.Key, e.Kv.Value)
		if e.PrevKv != nil {
			text += fmt.Sprintf("(was %s)", e.PrevKv.Value)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestWatchShowsWhatWasAskedFor(t *testing.T) {
	s := serve(t, nil)
	first := s.put("/a/1", "one")
	prefix := func(c *pb.WatchCreateRequest) *pb.WatchCreateRequest {
		c.Key, c.RangeEnd = []byte("/a/"), []byte("/a0")
		return c
	}
	for name, c := range map[string]struct {
		create *pb.WatchCreateRequest
		want   string
	}{
		"from now":        {prefix(&pb.WatchCreateRequest{}), "PUT /a/1=two, DELETE /a/1=, PUT /a/2=x"},
		"from the past":   {prefix(&pb.WatchCreateRequest{StartRevision: first}), "PUT /a/1=one, PUT /a/1=two, DELETE /a/1=, PUT /a/2=x"},
		"what was before": {prefix(&pb.WatchCreateRequest{PrevKv: true}), "PUT /a/1=two(was one), DELETE /a/1=(was two), PUT /a/2=x"},
		"no puts":         {prefix(&pb.WatchCreateRequest{Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}), "DELETE /a/1="},
		"no deletes":      {prefix(&pb.WatchCreateRequest{Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}), "PUT /a/1=two, PUT /a/2=x"},
		"one key":         {&pb.WatchCreateRequest{Key: []byte("/a/2")}, "PUT /a/2=x"},
		"from a key on":   {&pb.WatchCreateRequest{Key: []byte("/a/2"), RangeEnd: []byte{0}}, "PUT /a/2=x, PUT /b=y"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.create.StartRevision != 0 {
				c.create.StartRevision = s.put("/a/1", "one")
			}
			w := s.watch(c.create)
			s.put("/a/1", "two")
			s.del("/a/1")
			s.put("/a/2", "x")
			s.put("/b", "y")
			if got := describe(w.events(strings.Count(c.want, "="))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			s.del("/a/2")
			s.put("/a/1", "one")
		})
	}
}

func TestCreatedComesFirstWithTheStart(t *testing.T) {
	s := serve(t, nil)
	rev := s.put("/a", "1")
	w := s.watch()
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("/a")}); r.Header.Revision != rev || r.WatchId != 0 || r.Canceled {
		t.Errorf("created with %v at revision %d", r, rev)
	}
	rev = s.put("/a", "2")
	if r := w.next(); r.Header.Revision != rev || r.Events[0].Kv.ModRevision != rev {
		t.Errorf("event with %v at revision %d", r, rev)
	}
}

func TestWatchIDs(t *testing.T) {
	s := serve(t, func(_ *store.Config, c *Config) { c.MaxWatches = 5 })
	w := s.watch()
	key := []byte("/a")
	for _, c := range []struct {
		wanted, got int64
		reason      string
	}{
		{0, 0, ""},
		{1, 1, ""},
		{0, 2, ""}, // 1 is taken
		{7, 7, ""},
		{7, -1, "mvcc: duplicate watch ID provided on the WatchStream"},
		{-3, -1, "mvcc: watch ID is negative"},
		{0, 3, ""},
		{0, -1, "too many watches on one stream; open another stream"},
	} {
		r := w.create(&pb.WatchCreateRequest{Key: key, WatchId: c.wanted})
		if r.WatchId != c.got || r.CancelReason != c.reason || r.Canceled != (c.reason != "") {
			t.Errorf("wanted %d, got %v", c.wanted, r)
		}
	}
	w.send(cancelRequest(7))
	if r := w.next(); r.WatchId != 7 || !r.Canceled {
		t.Errorf("cancelling 7 is answered with %v", r)
	}
	if r := w.create(&pb.WatchCreateRequest{Key: key, WatchId: 7}); r.WatchId != 7 || r.Canceled {
		t.Errorf("7 is not free again: %v", r)
	}
}

func TestWatchOfNothing(t *testing.T) {
	w := serve(t, nil).watch()
	for _, c := range []*pb.WatchCreateRequest{
		{Key: []byte("/b"), RangeEnd: []byte("/a")},
		{Key: []byte("/b"), RangeEnd: []byte("/b")},
	} {
		if r := w.create(c); r.WatchId != -1 || !r.Canceled || r.CancelReason != "mvcc: watcher range is empty" {
			t.Errorf("got %v", r)
		}
	}
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("/b"), StartRevision: -1}); r.WatchId != -1 || !r.Canceled || r.CancelReason != rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted) {
		t.Errorf("got %v", r)
	}
}

func TestCompactedWatchIsToldSo(t *testing.T) {
	s := serve(t, nil)
	old := s.put("/a", "1")
	s.put("/a", "2")
	rev := s.put("/a", "3")
	if err := s.store.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	w := s.watch()
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("/a"), StartRevision: old}); r.Canceled {
		t.Errorf("created with %v", r)
	}
	if r := w.next(); !r.Canceled || r.CompactRevision != rev {
		t.Errorf("compacted at %d, got %v", rev, r)
	}
	// The stream goes on.
	w.create(&pb.WatchCreateRequest{Key: []byte("/a")})
	s.put("/a", "4")
	if got := describe(w.events(1)); got != "PUT /a=4" {
		t.Errorf("got %s", got)
	}
}

func TestWatchBeforeTheStoreWasOpened(t *testing.T) {
	s := serve(t, nil)
	const key = "/registry/events/default/a" // in memory only
	rev := s.put(key, "1")
	w := s.watch()
	if r := w.create(&pb.WatchCreateRequest{Key: []byte(key), StartRevision: 2}); r.Canceled {
		t.Errorf("created with %v", r)
	}
	if r := w.next(); !r.Canceled || r.CompactRevision < rev {
		t.Errorf("got %v, want compacted at %d or later", r, rev)
	}
}

func TestWatchFromTheFuture(t *testing.T) {
	s := serve(t, nil)
	rev := s.put("/a", "1")
	// Far enough that the next writes are before it, near enough to be reached.
	start := rev + int64(200*time.Millisecond/(10*time.Microsecond))<<16
	w := s.watch(&pb.WatchCreateRequest{Key: []byte("/a"), StartRevision: start})
	w.send(progressRequest()) // not answered: the watch has not begun
	var want []int64
	for deadline := time.Now().Add(patience); len(want) < 3 && time.Now().Before(deadline); {
		if rev := s.put("/a", "x"); rev >= start {
			want = append(want, rev)
		}
	}
	if len(want) < 3 {
		t.Fatal("the start was not reached")
	}
	for i, e := range w.events(3) {
		if e.Kv.ModRevision != want[i] {
			t.Errorf("event %d is at %d, want %d", i, e.Kv.ModRevision, want[i])
		}
	}
}

func TestHalfClosedClientGoesOnListening(t *testing.T) {
	s := serve(t, nil)
	w := s.watch(&pb.WatchCreateRequest{Key: []byte("/a")})
	if err := w.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.put("/a", "1")
	if got := describe(w.events(1)); got != "PUT /a=1" {
		t.Errorf("got %s", got)
	}
}

func TestLargeBatchesAreSplit(t *testing.T) {
	s := serve(t, func(c *store.Config, _ *Config) { c.WatchBytes = 64 << 20 })
	w := s.watch(&pb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0")})
	value := []byte(strings.Repeat("x", 300<<10))
	for range 4 {
		var ops []store.Op
		for i := range 4 {
			ops = append(ops, store.Op{Kind: store.OpPut, Key: fmt.Appendf(nil, "/a/%d", i), Value: value})
		}
		s.write(ops...)
	}
	var revisions []int64
	for len(revisions) < 16 {
		r := w.next()
		size := 0
		for _, e := range r.Events {
			size += len(e.Kv.Value)
			revisions = append(revisions, e.Kv.ModRevision)
		}
		if size > maxResponseBytes+len(value) {
			t.Errorf("a response has %d bytes", size)
		}
		if r.Header.Revision != revisions[len(revisions)-1] {
			t.Errorf("header revision %d, last event at %d", r.Header.Revision, revisions[len(revisions)-1])
		}
	}
	if !slices.IsSorted(revisions) || len(slices.Compact(revisions)) != 16 {
		t.Errorf("revisions are %v", revisions)
	}
}
