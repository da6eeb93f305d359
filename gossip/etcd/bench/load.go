package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	writePrefix = "/registry/pods/bench/"
	listPrefix  = "/registry/configmaps/bench/"
	keysEach    = 16  // keys a writing client goes round
	page        = 500 // objects a page, as kubectl asks for
)

// measure is what one load did in one round.
type measure struct {
	operations int
	took       time.Duration
	cpu        time.Duration // of the server
	latencies  []time.Duration
}

func (m *measure) perSecond() float64 { return float64(m.operations) / m.took.Seconds() }

func (m *measure) quantile(q float64) time.Duration {
	if len(m.latencies) == 0 {
		return 0
	}
	return m.latencies[min(len(m.latencies)-1, int(q*float64(len(m.latencies))))]
}

// connect opens as many connections as clients need, sixteen sharing one.
func connect(v *server, clients int) ([]pb.KVClient, func(), error) {
	var conns []*grpc.ClientConn
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	kvs := make([]pb.KVClient, 0, clients)
	for i := range clients {
		if i%16 == 0 {
			c, err := grpc.NewClient("unix://"+v.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			conns = append(conns, c)
		}
		kvs = append(kvs, pb.NewKVClient(conns[len(conns)-1]))
	}
	return kvs, closeAll, nil
}

// operation does one thing and is timed.
type operation func(ctx context.Context, kv pb.KVClient, client, n int) error

// drive runs clients that each do one operation after another for a period.
func drive(ctx context.Context, v *server, clients int, period time.Duration, op operation) (*measure, error) {
	kvs, closeAll, err := connect(v, clients)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	before, err := v.cpu()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	m := &measure{}
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for client, kv := range kvs {
		group.Go(func() error {
			var latencies []time.Duration
			for n := 0; time.Since(begin) < period; n++ {
				start := time.Now()
				if err := op(ctx, kv, client, n); err != nil {
					return fmt.Errorf("%s: %w", v.name, err)
				}
				latencies = append(latencies, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			m.latencies = append(m.latencies, latencies...)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	m.took = time.Since(begin)
	after, err := v.cpu()
	if err != nil {
		return nil, err
	}
	m.cpu, m.operations = after-before, len(m.latencies)
	slices.Sort(m.latencies)
	return m, nil
}

// writes is the load of optimistic puts, with a watch that must see them all.
func writes(ctx context.Context, v *server, clients int, period time.Duration) (*measure, error) {
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen, err := countEvents(watchCtx, v)
	if err != nil {
		return nil, err
	}
	revisions := make([][keysEach]int64, clients)
	values := randomValues()
	m, err := drive(ctx, v, clients, period, func(ctx context.Context, kv pb.KVClient, client, n int) error {
		slot := n % keysEach
		rev, err := optimisticPut(ctx, kv, fmt.Appendf(nil, "%s%d-%d", writePrefix, client, slot), revisions[client][slot], values[(client+n)%len(values)])
		revisions[client][slot] = rev
		return err
	})
	if err != nil {
		return nil, err
	}
	wait := time.NewTimer(10 * time.Second)
	defer wait.Stop()
	for got := 0; got < m.operations; {
		select {
		case n, ok := <-seen:
			if !ok {
				return nil, fmt.Errorf("%s: the watch ended after %d of %d events", v.name, got, m.operations)
			}
			got += n
		case <-wait.C:
			return nil, fmt.Errorf("%s: the watch showed %d of %d events", v.name, got, m.operations)
		}
	}
	return m, nil
}

// optimisticPut does as kube-apiserver does, and takes up a revision that an
// earlier round left.
func optimisticPut(ctx context.Context, kv pb.KVClient, key []byte, rev int64, value []byte) (int64, error) {
	for {
		r, err := kv.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{
				Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
			}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
		})
		if err != nil {
			return 0, err
		}
		if r.Succeeded {
			return r.Header.Revision, nil
		}
		kvs := r.Responses[0].GetResponseRange().Kvs
		if rev = 0; len(kvs) > 0 {
			rev = kvs[0].ModRevision
		}
	}
}

// countEvents opens a watch on all that writes writes and sends how many
// events each response has.
func countEvents(ctx context.Context, v *server) (<-chan int, error) {
	conn, err := grpc.NewClient("unix://"+v.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	create := &pb.WatchCreateRequest{Key: []byte(writePrefix), RangeEnd: prefixEnd(writePrefix), PrevKv: true}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if _, err := stream.Recv(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	seen := make(chan int, 1<<20)
	go func() {
		defer close(seen)
		defer func() { _ = conn.Close() }()
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			seen <- len(r.Events)
		}
	}()
	return seen, nil
}

// pagedList lists everything in pages pinned to one revision.
func pagedList(ctx context.Context, kv pb.KVClient, _, _ int) error {
	key, rev := []byte(listPrefix), int64(0)
	for {
		r, err := kv.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: prefixEnd(listPrefix), Limit: page, Revision: rev})
		if err != nil {
			return err
		}
		if !r.More {
			return nil
		}
		key, rev = append(r.Kvs[len(r.Kvs)-1].Key, 0), r.Header.Revision
	}
}

// streamedList lists everything in one RangeStream.
func streamedList(ctx context.Context, kv pb.KVClient, _, _ int) error {
	stream, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte(listPrefix), RangeEnd: prefixEnd(listPrefix)})
	if err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// get reads one object at its newest.
func get(objects int) operation {
	return func(ctx context.Context, kv pb.KVClient, client, n int) error {
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: fmt.Appendf(nil, "%s%06d", listPrefix, (client*7919+n)%objects)})
		return err
	}
}

// fill writes the objects that lists read.
func fill(ctx context.Context, v *server, objects int) error {
	kvs, closeAll, err := connect(v, 64)
	if err != nil {
		return err
	}
	defer closeAll()
	values := randomValues()
	group, ctx := errgroup.WithContext(ctx)
	for client, kv := range kvs {
		group.Go(func() error {
			for i := client; i < objects; i += len(kvs) {
				if _, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "%s%06d", listPrefix, i), Value: values[i%len(values)]}); err != nil {
					return fmt.Errorf("fill %s: %w", v.name, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// randomValues are of 1 to 5 KB, the same for everyone.
func randomValues() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	values := make([][]byte, 64)
	for i := range values {
		values[i] = make([]byte, 1024+rng.IntN(4096))
		for j := range values[i] {
			values[i][j] = byte(' ' + rng.IntN(90))
		}
	}
	return values
}

func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}
