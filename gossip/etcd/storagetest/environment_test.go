package storagetest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/utils/clock"

	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
)

// valuePrefix is what the test transformer puts before every stored value.
const valuePrefix = "test!"

// compactingStore is the etcd3 store as these tests need it.
type compactingStore interface {
	storage.Interface
	CompactRevision() int64
}

// environment is an etcd3 store over a server of ours.
type environment struct {
	compactingStore
	client      *kubernetes.Client
	codec       runtime.Codec
	transformer *swapped
}

// options are what a test may want otherwise.
type options struct {
	codec            func(runtime.Codec) runtime.Codec
	transformer      func(value.Transformer) value.Transformer
	progressInterval time.Duration
	renumber         bool // show revisions as etcd counts them
}

func newEnvironment(t *testing.T, o options) *environment {
	t.Helper()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	if err := errors.Join(example.AddToScheme(scheme), examplev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	e := &environment{
		client: serve(t, o),
		codec:  apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion),
	}
	if o.codec != nil {
		e.codec = o.codec(e.codec)
	}
	var transformer value.Transformer = storagetesting.NewPrefixTransformer([]byte(valuePrefix), false)
	if o.transformer != nil {
		transformer = o.transformer(transformer)
	}
	e.transformer = &swapped{}
	e.transformer.set(transformer)
	leases := etcd3.NewDefaultLeaseManagerConfig()
	leases.ReuseDurationSeconds = 1 // shorter than the suite's patience
	compactor := etcd3.NewCompactor(e.client.Client, 0, clock.RealClock{}, nil)
	t.Cleanup(compactor.Stop)
	versioner := storage.APIObjectVersioner{}
	s, err := etcd3.New(e.client, compactor, e.codec,
		func() runtime.Object { return &example.Pod{} },
		func() runtime.Object { return &example.PodList{} },
		"", "/pods/", schema.GroupResource{Resource: "pods"}, e.transformer, leases,
		etcd3.NewDefaultDecoder(e.codec, versioner), versioner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	e.compactingStore = s
	return e
}

// serve runs a store and the API over it until the test ends, and connects.
func serve(t *testing.T, o options) *kubernetes.Client {
	t.Helper()
	s, err := store.Open(store.DefaultConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "s") //nolint:usetesting // t.TempDir can be too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := etcd.DefaultConfig()
	cfg.Socket = filepath.Join(dir, "etcd.sock")
	cfg.Store = s
	cfg.Log = slog.New(slog.DiscardHandler)
	if o.progressInterval != 0 {
		cfg.ProgressInterval = o.progressInterval
	}
	server, err := etcd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stopStore := run(t, "store", s.Run)
	stopServer := run(t, "server", server.Run)
	t.Cleanup(func() {
		stopServer()
		stopStore()
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	<-server.Ready()
	clientConfig := clientv3.Config{Endpoints: []string{"unix://" + cfg.Socket}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if o.renumber {
		clientConfig.DialOptions = new(renumbered).dialOptions()
	}
	client, err := kubernetes.New(clientConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	recorder := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, recorder)
	client.Kubernetes = recorder
	return client
}

func run(t *testing.T, name string, f func(context.Context) error) (stop func()) {
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

// swapped is a transformer that can be exchanged while the store uses it.
type swapped struct {
	current atomic.Pointer[value.Transformer]
}

func (s *swapped) set(t value.Transformer) { s.current.Store(&t) }
func (s *swapped) get() value.Transformer  { return *s.current.Load() }

func (s *swapped) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	return s.get().TransformFromStorage(ctx, data, dataCtx)
}

func (s *swapped) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	return s.get().TransformToStorage(ctx, data, dataCtx)
}

// UpdatePrefixTransformer lets the suite change the transformer and undo it.
func (e *environment) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	before := e.transformer.get()
	changed := *before.(*storagetesting.PrefixTransformer)
	e.transformer.set(modify(&changed))
	return func() { e.transformer.set(before) }
}

// UpdateTransformer is the same for any transformer.
func (e *environment) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	before := e.transformer.get()
	e.transformer.set(modify(before))
	return func() { e.transformer.set(before) }
}

// deletingCorrupt is e behind the store that can delete what it cannot decode.
type deletingCorrupt struct {
	storage.Interface
	e *environment
}

func (e *environment) deletingCorrupt() *deletingCorrupt {
	return &deletingCorrupt{etcd3.NewStoreWithUnsafeCorruptObjectDeletion(e.compactingStore, schema.GroupResource{Resource: "pods"}), e}
}

func (d *deletingCorrupt) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	return d.e.UpdateTransformer(modify)
}
