package api_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	moves     = 200
	movedKeys = 16
	perMove   = 2 // writes that are acknowledged between two moves
)

// checkMoving keeps both nodes under writes. It moves an informer between them,
// which must end with the last state of every object, and lets a client go from
// one to the other with what it has read, whose every success must count.
func checkMoving(t *testing.T, nodes []*node) {
	relay := startRelay(t, nodes[0])
	objects := informer(t, relay.config())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var written atomic.Int64
	var writers sync.WaitGroup
	last := make([]string, movedKeys)
	for key := range movedKeys {
		writers.Go(func() { last[key] = writeOn(ctx, t, nodes[key%len(nodes)].client, key, &written) })
	}
	var counted int
	writers.Go(func() { counted = countOn(ctx, t, nodes) })

	for move := range moves {
		from := written.Load()
		await(t, "writes", func(context.Context) bool { return written.Load() >= from+perMove })
		relay.move(nodes[(move+1)%len(nodes)])
	}
	stop()
	writers.Wait()
	for key, want := range last {
		await(t, fmt.Sprintf("the last state of key %d, %q", key, want), func(context.Context) bool {
			object, exists, err := objects.GetByKey(fmt.Sprint("default/moved-", key))
			if err != nil || !exists {
				return err == nil && want == ""
			}
			return object.(*corev1.ConfigMap).Data["n"] == want
		})
	}
	for _, n := range nodes {
		counter, err := n.client.CoreV1().ConfigMaps("default").Get(t.Context(), "counter", metav1.GetOptions{})
		check(t, err)
		if counter.Data["n"] != strconv.Itoa(counted) {
			t.Errorf("node %d counts %s, and %d changes succeeded", n.Number, counter.Data["n"], counted)
		}
	}
	t.Logf("%d moves under %d writes; a client counted to %d", moves, written.Load(), counted)
}

// informer is upstream's, but for the pause after each move, which would grow
// to half a minute.
func informer(t *testing.T, config *rest.Config) cache.Store {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	objects := cache.NewStore(cache.MetaNamespaceKeyFunc)
	source := cache.ToListWatcherWithWatchListSemantics(cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "configmaps", "default", fields.Everything()), client)
	reflector := cache.NewReflectorWithOptions(source, &corev1.ConfigMap{}, objects, cache.ReflectorOptions{
		Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Factor: 1, Steps: 1, Cap: 10 * time.Millisecond},
	})
	run(t, "informer", func(ctx context.Context) error {
		reflector.RunWithContext(ctx)
		return nil
	})
	return objects
}

// writeOn writes a key again and again, and deletes it at times, and returns
// what it holds in the end: "" for nothing.
func writeOn(ctx context.Context, t *testing.T, client kubernetes.Interface, key int, written *atomic.Int64) string {
	things := client.CoreV1().ConfigMaps("default")
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("moved-", key)}}
	holds, deletes := "", key%4 == 3
	for i := 1; ctx.Err() == nil; i++ {
		next := strconv.Itoa(i)
		object.Data = map[string]string{"n": next}
		var err error
		switch {
		case holds == "":
			_, err = things.Create(context.WithoutCancel(ctx), object, metav1.CreateOptions{})
		case deletes && i%5 == 0:
			next = ""
			err = things.Delete(context.WithoutCancel(ctx), object.Name, metav1.DeleteOptions{})
		default:
			_, err = things.Update(context.WithoutCancel(ctx), object, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Errorf("write key %d on its node: %v", key, err)
			return holds
		}
		holds = next
		written.Add(1)
	}
	return holds
}

// countOn counts in an object up, each time on the other node, with what the one
// before gave it, and returns how far.
func countOn(ctx context.Context, t *testing.T, nodes []*node) int {
	const name = "counter"
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "0"}}
	object, err := nodes[0].client.CoreV1().ConfigMaps("default").Create(t.Context(), object, metav1.CreateOptions{})
	if err != nil {
		t.Errorf("create the counter: %v", err)
		return 0
	}
	counted := 0
	for ctx.Err() == nil {
		here := nodes[(counted+1)%len(nodes)].client.CoreV1().ConfigMaps("default")
		object.Data["n"] = strconv.Itoa(counted + 1)
		if _, err := here.Update(t.Context(), object, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("update with the other node's resource version: %v", err)
			return counted
		}
		read, err := here.Get(t.Context(), name, metav1.GetOptions{ResourceVersion: object.ResourceVersion})
		if err != nil || read.Data["n"] != strconv.Itoa(counted) {
			t.Errorf("get %v after it counted to %d: %v", read.Data, counted, err)
			return counted
		}
		list, err := here.List(t.Context(), metav1.ListOptions{ResourceVersion: object.ResourceVersion, FieldSelector: "metadata.name=" + name})
		if err != nil || len(list.Items) != 1 || list.Items[0].Data["n"] != strconv.Itoa(counted) {
			t.Errorf("list %v after it counted to %d: %v", list.Items, counted, err)
			return counted
		}
		read.Data["n"] = strconv.Itoa(counted + 1)
		if object, err = here.Update(t.Context(), read, metav1.UpdateOptions{}); err != nil {
			t.Errorf("update to %d: %v", counted+1, err)
			return counted
		}
		counted++
	}
	return counted
}
