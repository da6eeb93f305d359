package storagetest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
)

// storedAsBytes holds what is in etcd to the rules of storage: the value carries
// the transformer's prefix, and neither resource version nor self link.
func (e *environment) storedAsBytes(ctx context.Context, t *testing.T, key string) {
	t.Helper()
	got, err := e.client.KV.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	if len(got.Kvs) != 1 {
		t.Fatalf("get %s: %d keys", key, len(got.Kvs))
	}
	obj, err := runtime.Decode(e.codec, got.Kvs[0].Value[len(valuePrefix):])
	if err != nil {
		t.Fatalf("decode %s: %v", key, err)
	}
	if pod := obj.(*example.Pod); pod.ResourceVersion != "" || pod.SelfLink != "" { //nolint:staticcheck // deprecated, and never to be stored
		t.Errorf("%s is stored with a resource version or a self link: %v", key, pod.ObjectMeta)
	}
}

// compact compacts as an apiserver does, and waits until the store knows.
func (e *environment) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	rev, err := storage.APIObjectVersioner{}.ParseResourceVersion(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	// The first call may only learn the logical time of an earlier compaction.
	logical, _, _, err := etcd3.Compact(ctx, e.client.Client, 0, int64(rev))
	if err != nil {
		_, _, _, err = etcd3.Compact(ctx, e.client.Client, logical, int64(rev))
	}
	if err != nil {
		t.Fatalf("compact %d: %v", rev, err)
	}
	if !utilfeature.DefaultFeatureGate.Enabled(features.ListFromCacheSnapshot) {
		return
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(30 * time.Second)
	for e.CompactRevision() != int64(rev) {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("the store knows of compaction %d, not of %d", e.CompactRevision(), rev)
		}
	}
}

// increase moves the newest revision on.
func (e *environment) increase(ctx context.Context, t *testing.T) int64 {
	t.Helper()
	r, err := e.client.Put(ctx, "increaseRV", "ok")
	if err != nil {
		t.Fatalf("put: %v", err)
	}
	return r.Header.Revision
}

// keys lists what is stored, for the estimate of object sizes.
func (e *environment) keys(ctx context.Context) ([]string, error) {
	got, err := e.client.KV.Get(ctx, "/pods/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, kv := range got.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys, nil
}

// calls returns the check of how many objects were decoded and how many reads
// of etcd that took: pages double from the first one on.
func (e *environment) calls() storagetesting.CallsValidation {
	const largestPage = 10_000
	transformer := e.transformer.get().(*storagetesting.PrefixTransformer)
	recorder := e.client.KV.(*storagetesting.KVRecorder)
	return func(t *testing.T, pageSize, objects uint64) {
		t.Helper()
		if got := transformer.GetReadsAndReset(); got != objects {
			t.Errorf("%d objects decoded, want %d", got, objects)
		}
		want := uint64(1)
		if pageSize != 0 {
			for page, read := pageSize, uint64(1); read < objects; read += page {
				page = min(page*2, largestPage)
				want++
			}
		}
		if got := recorder.GetReadsAndReset() + recorder.GetStreamReadsAndReset(); got != want {
			t.Fatalf("%d reads, want %d", got, want)
		}
	}
}

// corrupt is the error of an object that cannot be read back.
func corrupt(t *testing.T) error {
	t.Helper()
	broken := &failingTransformer{}
	broken.on.Store(true)
	_, _, err := etcd3.WithCorruptObjErrorHandlingTransformer(broken).TransformFromStorage(t.Context(), nil, nil)
	if err == nil {
		t.Fatal("a failing transformer did not fail")
	}
	return err
}

var errSynthetic = errors.New("synthetic error")

// failingTransformer is a transformer that can be told to fail.
type failingTransformer struct {
	value.Transformer
	on atomic.Bool
}

func (f *failingTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if f.on.Load() {
		return nil, false, errSynthetic
	}
	return f.Transformer.TransformFromStorage(ctx, data, dataCtx)
}

// failingCodec is a codec that can be told to fail.
type failingCodec struct {
	runtime.Codec
	on atomic.Bool
}

func (f *failingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if f.on.Load() {
		return nil, nil, errSynthetic
	}
	return f.Codec.Decode(data, defaults, into)
}
