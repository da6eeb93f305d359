package difftest

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
)

// side is one of the two servers compared.
type side struct {
	name  string
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
}

func dial(t testing.TB, name, target string) *side {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &side{name: name, kv: pb.NewKVClient(conn), watch: pb.NewWatchClient(conn), lease: pb.NewLeaseClient(conn)}
}

// shortDir is a temporary directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") //nolint:usetesting // t.TempDir can be too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startOurs runs a store and the API over it until the test ends.
func startOurs(t testing.TB) *side {
	t.Helper()
	s, err := store.Open(store.DefaultConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	cfg := etcd.DefaultConfig()
	cfg.Socket = filepath.Join(shortDir(t), "etcd.sock")
	cfg.Store = s
	cfg.Log = slog.New(slog.DiscardHandler)
	server, err := etcd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	storeDone := run(t, "store", s.Run)
	serverDone := run(t, "server", server.Run)
	<-server.Ready()
	t.Cleanup(func() {
		serverDone()
		storeDone()
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return dial(t, "ours", "unix://"+cfg.Socket)
}

// run starts f and returns a function that stops it and waits for its end.
func run(t testing.TB, name string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", name, err)
		}
	}
}

// startEtcd runs a real etcd until the test ends.
func startEtcd(t testing.TB) *side {
	t.Helper()
	dir := shortDir(t)
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.UnsafeNoFsync = true
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client := url.URL{Scheme: "unix", Path: filepath.Join(dir, "c")}
	peer := url.URL{Scheme: "unix", Path: filepath.Join(dir, "p")}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd did not start")
	}
	return dial(t, "etcd", "unix://"+client.Path)
}
