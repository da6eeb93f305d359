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
	"google.golang.org/protobuf/proto"
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
	cpu        time.Duration // of the server, all members
	latencies  []time.Duration
}

func (m *measure) perSecond() float64 { return float64(m.operations) / m.took.Seconds() }

func (m *measure) quantile(q float64) time.Duration {
	if len(m.latencies) == 0 {
		return 0
	}
	return m.latencies[min(len(m.latencies)-1, int(q*float64(len(m.latencies))))]
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
}

// connect opens as many connections as clients need, sixteen sharing one.
func connect(v *server, clients int) ([]*grpc.ClientConn, func(), error) {
	var conns, each []*grpc.ClientConn
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	for i := range clients {
		if i%16 == 0 {
			c, err := dial(v.socket)
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			conns = append(conns, c)
		}
		each = append(each, conns[len(conns)-1])
	}
	return each, closeAll, nil
}

// operation does one thing and is timed.
type operation func(ctx context.Context, conn *grpc.ClientConn, client, n int) error

// drive runs clients that each do one operation after another for a period.
func drive(ctx context.Context, v *server, clients int, period time.Duration, op operation) (*measure, error) {
	conns, closeAll, err := connect(v, clients)
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
	for client, conn := range conns {
		group.Go(func() error {
			var latencies []time.Duration
			for n := 0; time.Since(begin) < period; n++ {
				start := time.Now()
				if err := op(ctx, conn, client, n); err != nil {
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
	m, err := drive(ctx, v, clients, period, func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		slot := n % keysEach
		rev, err := optimisticPut(ctx, conn, fmt.Appendf(nil, "%s%d-%d", writePrefix, client, slot), revisions[client][slot], values[(client+n)%len(values)])
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

// countEvents opens a watch on all that writes writes and sends how many
// events each response has.
func countEvents(ctx context.Context, v *server) (<-chan int, error) {
	conn, err := dial(v.socket)
	if err != nil {
		return nil, err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, pb.Watch_Watch_FullMethodName, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	create, err := proto.Marshal(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(writePrefix), RangeEnd: prefixEnd(writePrefix), PrevKv: true},
	}})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := errors.Join(stream.SendMsg(&create), stream.RecvMsg((*[]byte)(nil))); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	seen := make(chan int, 1<<20)
	go func() {
		const events = 11 // in a WatchResponse
		var answer []byte
		defer close(seen)
		defer func() { _ = conn.Close() }()
		for {
			if err := stream.RecvMsg(&answer); err != nil {
				return
			}
			n, err := countFields(answer, events)
			if err != nil {
				return
			}
			seen <- n
		}
	}()
	return seen, nil
}

// invoke sends a request as bytes and looks at nothing of the answer.
func invoke(ctx context.Context, conn *grpc.ClientConn, method string, request proto.Message) error {
	b, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	return conn.Invoke(ctx, method, &b, (*[]byte)(nil), grpc.ForceCodecV2(raw{}))
}

// pagedList lists everything in pages. Where pages begin is known, since the
// keys are.
func pagedList(objects int) operation {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		for from := 0; from < objects; from += page {
			if err := invoke(ctx, conn, pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: listKey(from), RangeEnd: prefixEnd(listPrefix), Limit: page}); err != nil {
				return err
			}
		}
		return nil
	}
}

// streamedList lists everything in one RangeStream.
func streamedList(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, pb.KV_RangeStream_FullMethodName, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return err
	}
	request, err := proto.Marshal(&pb.RangeRequest{Key: []byte(listPrefix), RangeEnd: prefixEnd(listPrefix)})
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(&request), stream.CloseSend()); err != nil {
		return err
	}
	for {
		if err := stream.RecvMsg((*[]byte)(nil)); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// get reads one object at its newest.
func get(objects int) operation {
	return func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		return invoke(ctx, conn, pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: listKey((client*7919 + n) % objects)})
	}
}

func listKey(i int) []byte { return fmt.Appendf(nil, "%s%06d", listPrefix, i) }

// fill writes the objects that lists read.
func fill(ctx context.Context, v *server, objects int) error {
	conns, closeAll, err := connect(v, 64)
	if err != nil {
		return err
	}
	defer closeAll()
	values := randomValues()
	group, ctx := errgroup.WithContext(ctx)
	for client, conn := range conns {
		group.Go(func() error {
			for i := client; i < objects; i += len(conns) {
				if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: listKey(i), Value: values[i%len(values)]}); err != nil {
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
