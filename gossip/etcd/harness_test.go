package etcd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mootkube/moot/gossip/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// testServer is a running server over a real store.
type testServer struct {
	t      *testing.T
	store  *store.Store
	socket string
	stop   func() error // ends the server and waits, before the test does
}

// serve runs a server until the test ends. change may adjust either config.
func serve(t *testing.T, change func(*store.Config, *Config)) *testServer {
	t.Helper()
	storeConfig, cfg := store.DefaultConfig(t.TempDir()), DefaultConfig()
	cfg.Socket = filepath.Join(shortDir(t), "etcd.sock")
	cfg.Log = slog.New(slog.DiscardHandler)
	if change != nil {
		change(&storeConfig, &cfg)
	}
	s, err := store.Open(storeConfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Store = s
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stopStore := start(s.Run)
	stopServer := start(server.Run)
	stopped := false
	ts := &testServer{t: t, store: s, socket: cfg.Socket}
	ts.stop = func() error {
		stopped = true
		return stopServer()
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stopServer(); err != nil {
				t.Errorf("run server: %v", err)
			}
		}
		if err := stopStore(); err != nil {
			t.Errorf("run store: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	select {
	case <-server.Ready():
	case <-time.After(patience):
		t.Fatal("the server did not get ready")
	}
	return ts
}

// start runs f and returns a function that ends it and waits.
func start(f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// shortDir is a temporary directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e") //nolint:usetesting // t.TempDir can be too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// dial connects to the server until the test ends.
func (s *testServer) dial() *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *testServer) kv() pb.KVClient { return pb.NewKVClient(s.dial()) }

// put writes through the store and returns the revision.
func (s *testServer) put(key, value string) int64 {
	s.t.Helper()
	return s.write(store.Op{Kind: store.OpPut, Key: []byte(key), Value: []byte(value)})
}

func (s *testServer) del(key string) {
	s.t.Helper()
	s.write(store.Op{Kind: store.OpDelete, Key: []byte(key)})
}

func (s *testServer) write(ops ...store.Op) int64 {
	s.t.Helper()
	r, err := s.store.Txn(context.Background(), store.Txn{Then: ops})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Revision
}
