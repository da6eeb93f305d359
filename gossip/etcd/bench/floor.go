package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// floor is what a server of this API cannot do without: gRPC, the value written
// and synced to the disk, together with what has come meanwhile, an answer, and an
// event with the value before and after. It stores nothing else, checks nothing,
// and finds nothing again.
type floor struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer

	queue chan *floorPut

	writing  sync.Mutex // held by whoever writes
	file     *os.File
	at       int64
	revision int64
	events   chan *mvccpb.Event // of the watch, nil for none
}

type floorPut struct {
	put  *pb.PutRequest
	done chan int64 // gets the revision
}

const (
	floorClients = 1 << 10
	floorBytes   = 64 << 20 // of the file, which is written round and round
)

func (m member) serveFloor(ctx context.Context) (err error) {
	file, err := os.Create(filepath.Join(m.dir, "floor"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for range floorBytes >> 20 { // blocks that are there already are synced fastest
		if _, err := file.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", m.socket)
	if err != nil {
		return err
	}
	f := &floor{file: file, queue: make(chan *floorPut, floorClients)}
	server := grpc.NewServer(grpc.NumStreamWorkers(256), grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20))
	pb.RegisterKVServer(server, f)
	pb.RegisterWatchServer(server, f)
	defer context.AfterFunc(ctx, server.Stop)()
	fmt.Println("ready")
	return server.Serve(listener)
}

// Txn implements [pb.KVServer]. The first caller that comes writes for all that wait.
func (f *floor) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	own := &floorPut{put: r.Success[0].GetRequestPut(), done: make(chan int64, 1)}
	f.queue <- own
	f.writing.Lock()
	defer f.writing.Unlock()
	if len(own.done) == 0 {
		if err := f.write(); err != nil {
			return nil, err
		}
	}
	return &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: <-own.done}, Succeeded: true}, nil
}

func (f *floor) write() error {
	var values []byte
	waiting := make([]*floorPut, len(f.queue))
	for i := range waiting {
		waiting[i] = <-f.queue
		values = append(values, waiting[i].put.Value...)
	}
	if f.at+int64(len(values)) > floorBytes {
		f.at = 0
	}
	if _, err := f.file.WriteAt(values, f.at); err != nil {
		return err
	}
	if err := dataSync(f.file); err != nil {
		return err
	}
	f.at += int64(len(values))
	for _, w := range waiting {
		f.revision++
		if kv := (&mvccpb.KeyValue{Key: w.put.Key, Value: w.put.Value}); f.events != nil {
			f.events <- &mvccpb.Event{Kv: kv, PrevKv: kv}
		}
		w.done <- f.revision
	}
	return nil
}

// Put implements [pb.KVServer] for filling, which is not measured.
func (f *floor) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{}, nil
}

// Watch implements [pb.WatchServer] for one watch at a time.
func (f *floor) Watch(s grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	events := make(chan *mvccpb.Event, 1<<20)
	f.watch(events)
	defer f.watch(nil)
	if err := s.Send(&pb.WatchResponse{Created: true}); err != nil {
		return err
	}
	for {
		var r pb.WatchResponse
		select {
		case <-s.Context().Done():
			return nil
		case e := <-events:
			r.Events = append(r.Events, e)
		}
		for range min(len(events), 50) {
			r.Events = append(r.Events, <-events)
		}
		if err := s.Send(&r); err != nil {
			return err
		}
	}
}

func (f *floor) watch(events chan *mvccpb.Event) {
	f.writing.Lock()
	f.events = events
	f.writing.Unlock()
}
