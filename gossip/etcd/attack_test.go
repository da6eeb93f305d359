package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mootkube/moot/gossip/store"
)

// TestGarbageOnTheSocket: strangers who speak something else are hung up on,
// and everyone else is served as before.
func TestGarbageOnTheSocket(t *testing.T) {
	s := serve(t, nil)
	kv := s.kv()
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for name, garbage := range map[string][]byte{
		"noise":               noise,
		"nothing":             nil,
		"a web browser":       []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a TLS client":        {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc},
		"noise for frames":    append([]byte(preface), noise...),
		"a frame of 16 MB":    append([]byte(preface), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1),
		"settings, then data": append([]byte(preface), 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4),
	} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(garbage) // the server may have hung up already
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "not connected") {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the server does not hang up", name)
		}
		_ = conn.Close()
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("/k")}); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
}

func TestHugeMessages(t *testing.T) {
	s := serve(t, nil)
	kv := s.kv()
	rev := s.put("/k", "small")
	for size, code := range map[int]codes.Code{
		1<<20 + 1<<19 + 1: codes.InvalidArgument, // by the store
		16 << 20:          codes.ResourceExhausted,
	} {
		_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("/k"), Value: make([]byte, size)})
		if status.Code(err) != code {
			t.Errorf("%d bytes: %v", size, err)
		}
		if code == codes.InvalidArgument && !errors.Is(rpctypes.Error(err), rpctypes.ErrRequestTooLarge) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	r, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("/k")})
	if err != nil || r.Kvs[0].ModRevision != rev {
		t.Errorf("the key is %v, %v", r, err)
	}
}

// TestClientThatNeverReads: its watch costs a bounded amount of memory while
// 100,000 events pass by it, and other clients see them all meanwhile.
func TestClientThatNeverReads(t *testing.T) {
	s := serve(t, nil)
	all := &pb.WatchCreateRequest{Key: []byte("/e/"), RangeEnd: []byte("/e0")}
	deaf := s.watch(all)
	reader := s.watch(all)
	const events, each = 100_000, 100
	before := heap()
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() error {
		ops := make([]store.Op, each)
		for n := range events / each {
			for i := range ops {
				ops[i] = store.Op{Kind: store.OpPut, Key: fmt.Appendf(nil, "/e/%d", i), Value: fmt.Appendf(nil, "%0500d", n)}
			}
			if _, err := s.store.Txn(ctx, store.Txn{Then: ops}); err != nil {
				return err
			}
		}
		return nil
	})
	last := int64(0)
	for seen := 0; seen < events; {
		for _, e := range reader.events(1) {
			if e.Kv.ModRevision <= last {
				t.Fatalf("event at %d after one at %d", e.Kv.ModRevision, last)
			}
			last = e.Kv.ModRevision
			seen++
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	// The store's own bounds are 50,000 entries of history in its index and a
	// few MB of recent changes; an unbounded queue would hold 100,000 events of
	// over 500 bytes for the deaf client, twice over once encoded.
	// What it still compacts is given back in a moment.
	grown := func() int64 { return int64(heap()) - int64(before) }
	for deadline := time.Now().Add(patience); grown() > 48<<20; <-time.After(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the heap grew by %d MiB", grown()>>20)
		}
	}
	deaf.drain(last)
}

// drain reads what is left for a client that comes back to its senses: events
// in order up to the last, or word that they are compacted.
func (w *testWatch) drain(last int64) {
	w.t.Helper()
	for seen := int64(0); seen < last; {
		r := w.next()
		if r.Canceled {
			if r.CompactRevision == 0 {
				w.t.Errorf("cancelled with %v", r)
			}
			return
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision <= seen {
				w.t.Fatalf("event at %d after one at %d", e.Kv.ModRevision, seen)
			}
			seen = e.Kv.ModRevision
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestThousandsOfWatchesOnOneStream: each shows its own key and no other.
func TestThousandsOfWatchesOnOneStream(t *testing.T) {
	s := serve(t, nil)
	const watches = 3000
	w := s.watch()
	for i := range watches {
		w.create(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "/w/%d", i)})
	}
	for i := 0; i < watches; i += 100 {
		var ops []store.Op
		for j := range 100 {
			ops = append(ops, store.Op{Kind: store.OpPut, Key: fmt.Appendf(nil, "/w/%d", i+j), Value: []byte("v")})
		}
		s.write(ops...)
	}
	seen := make(map[int64]bool)
	for len(seen) < watches {
		r := w.next()
		for _, e := range r.Events {
			if string(e.Kv.Key) != fmt.Sprintf("/w/%d", r.WatchId) || seen[r.WatchId] {
				t.Fatalf("watch %d shows %s", r.WatchId, e.Kv.Key)
			}
			seen[r.WatchId] = true
		}
	}
	w.send(progressRequest())
	if r := w.next(); r.WatchId != -1 || r.Header.Revision != s.store.Revision() {
		t.Errorf("progress of all is %v", r)
	}
}

// TestCancelRaces creates and cancels without waiting for answers while events
// flow. Each watch is answered in order: created, events, cancelled, nothing.
func TestCancelRaces(t *testing.T) {
	s := serve(t, nil)
	w := s.watch()
	writing, stop := context.WithCancel(t.Context())
	group, ctx := errgroup.WithContext(writing)
	group.Go(func() error {
		for ctx.Err() == nil {
			if _, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{{Kind: store.OpPut, Key: []byte("/k"), Value: []byte("v")}}}); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	const watches = 500
	group.Go(func() error {
		for id := int64(1); id <= watches; id++ {
			for _, r := range []*pb.WatchRequest{
				createRequest(&pb.WatchCreateRequest{Key: []byte("/k"), WatchId: id}), progressRequest(), cancelRequest(id), cancelRequest(id),
			} {
				if err := w.stream.Send(r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	open := make(map[int64]bool)
	for closed := 0; closed < watches; {
		r := w.next()
		switch {
		case r.WatchId == -1:
		case r.Created:
			open[r.WatchId] = true
		case !open[r.WatchId]:
			t.Fatalf("on watch %d, which is not open, came %v", r.WatchId, r)
		case r.Canceled:
			delete(open, r.WatchId)
			closed++
		}
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestClientsThatVanish: watches and requests of connections cut off in the
// middle leave nothing behind; TestMain counts the goroutines.
func TestClientsThatVanish(t *testing.T) {
	s := serve(t, nil)
	for range 20 {
		conn := s.dial()
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := stream.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("/"), RangeEnd: []byte{0}})); err != nil {
				t.Fatal(err)
			}
		}
		s.put("/k", "v")
		cancel()
		_ = conn.Close()
	}
	s.put("/k", "v")
}
