package etcd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/store"
)

func TestProgressOnRequest(t *testing.T) {
	s := serve(t, nil)
	rev := s.put("/other", "1")
	w := s.watch(&pb.WatchCreateRequest{Key: []byte("/a")}, &pb.WatchCreateRequest{Key: []byte("/b")})
	w.send(progressRequest())
	if r := w.next(); r.WatchId != -1 || r.Header.Revision != rev || len(r.Events) != 0 || r.Created || r.Canceled {
		t.Errorf("at %d, progress is %v", rev, r)
	}
	rev = s.put("/other", "2")
	w.send(progressRequest())
	if r := w.next(); r.WatchId != -1 || r.Header.Revision != rev {
		t.Errorf("at %d, progress is %v", rev, r)
	}
}

// TestNoProgressWithoutWatches: as in etcd there is nothing to answer.
func TestNoProgressWithoutWatches(t *testing.T) {
	s := serve(t, nil)
	w := s.watch()
	w.send(progressRequest())
	if r := w.create(&pb.WatchCreateRequest{Key: []byte("/a")}); r.WatchId != 0 {
		t.Errorf("got %v", r)
	}
}

func TestProgressOnSchedule(t *testing.T) {
	s := serve(t, func(_ *store.Config, c *Config) { c.ProgressInterval = 50 * time.Millisecond })
	w := s.watch(
		&pb.WatchCreateRequest{Key: []byte("/a"), WatchId: 6},
		&pb.WatchCreateRequest{Key: []byte("/a"), WatchId: 5, ProgressNotify: true},
	)
	rev := s.put("/other", "1")
	for {
		r := w.next()
		if r.WatchId != 5 || len(r.Events) != 0 {
			t.Fatalf("got %v", r)
		}
		if r.Header.Revision == rev {
			return
		}
		if r.Header.Revision > rev {
			t.Fatalf("progress %d is ahead of %d", r.Header.Revision, rev)
		}
	}
}

// TestProgressIsNeverAheadOfEvents has writers, watches that come and go, and a
// client that asks for progress all the time. Once told a revision, it may get
// no event at or before it; and in the end it has every event once.
func TestProgressIsNeverAheadOfEvents(t *testing.T) {
	s := serve(t, func(c *store.Config, cfg *Config) {
		c.WatchEvents = 8 // falling behind and catching up are the hard part
		cfg.ProgressInterval = 5 * time.Millisecond
	})
	const keys, writes = 5, 2000
	w := s.watch()
	for i := range int64(keys) {
		w.send(createRequest(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "/k/%d", i), WatchId: i + 1, ProgressNotify: i%2 == 0}))
		for !w.next().Created { // scheduled progress of the others may come first
		}
	}
	writing, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	group, ctx := errgroup.WithContext(writing)
	for range 2 {
		group.Go(func() error {
			for range writes / 2 {
				op := store.Op{Kind: store.OpPut, Key: fmt.Appendf(nil, "/k/%d", rand.IntN(keys)), Value: []byte("v")}
				if _, err := s.store.Txn(ctx, store.Txn{Then: []store.Op{op}}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	asked := make(chan struct{})
	asking, stopAsking := context.WithCancel(ctx)
	go func() {
		defer close(asked)
		churn := int64(100)
		for asking.Err() == nil {
			churn++
			_ = w.stream.Send(progressRequest())
			_ = w.stream.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("/elsewhere"), WatchId: churn}))
			_ = w.stream.Send(cancelRequest(churn))
			select {
			case <-asking.Done():
			case <-time.After(time.Millisecond):
			}
		}
	}()
	check := progressCheck{told: make(map[int64]int64), last: make(map[int64]int64)}
	// However quick the writers were: the test goes on until it has seen enough.
	for check.events < writes || check.marks < 10 || check.scheduled == 0 {
		check.take(t, w.next())
	}
	stopAsking()
	<-asked
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

type progressCheck struct {
	told             map[int64]int64 // by watch: revision up to which nothing more may come
	last             map[int64]int64 // by watch: revision of the last event
	all              int64
	events           int
	marks, scheduled int
}

func (c *progressCheck) take(t *testing.T, r *pb.WatchResponse) {
	t.Helper()
	switch {
	case r.Created || r.Canceled:
	case len(r.Events) > 0:
		for _, e := range r.Events {
			if e.Kv.ModRevision <= max(c.all, c.told[r.WatchId]) {
				t.Fatalf("watch %d: event at %d after progress %d", r.WatchId, e.Kv.ModRevision, max(c.all, c.told[r.WatchId]))
			}
			if e.Kv.ModRevision <= c.last[r.WatchId] {
				t.Fatalf("watch %d: event at %d after one at %d", r.WatchId, e.Kv.ModRevision, c.last[r.WatchId])
			}
			c.last[r.WatchId] = e.Kv.ModRevision
		}
		c.events += len(r.Events)
	case r.WatchId == -1:
		c.marks++
		c.all = max(c.all, r.Header.Revision)
	default:
		c.scheduled++
		c.told[r.WatchId] = max(c.told[r.WatchId], r.Header.Revision)
	}
}
