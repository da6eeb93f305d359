package sched

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// Indexes of the pods.
const (
	byNode     = "node"     // all pods, by the node they are bound to
	bySilenced = "silenced" // the same, those out of the endpoints because of a leader
)

// view is what the leader knows of Nodes and pods: little of each.
type view struct {
	factory informers.SharedInformerFactory
	nodes   corelisters.NodeLister
	pods    cache.Indexer
	synced  []cache.InformerSynced
}

// newView makes a view that calls changed whenever something moved in it that
// may matter to [keeper].
func newView(client kubernetes.Interface, changed func()) (*view, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(strip))
	nodes, pods := factory.Core().V1().Nodes(), factory.Core().V1().Pods()
	err := pods.Informer().AddIndexers(cache.Indexers{
		byNode: func(obj any) ([]string, error) { return nodeOf(obj, false), nil },
		bySilenced: func(obj any) ([]string, error) {
			return nodeOf(obj, true), nil
		},
	})
	onNode, nodeErr := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		DeleteFunc: func(any) { changed() },
		UpdateFunc: func(before, after any) {
			if !sameNode(before.(*corev1.Node), after.(*corev1.Node)) {
				changed()
			}
		},
	})
	onPod, podErr := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(before, after any) {
			if !samePod(before.(*corev1.Pod), after.(*corev1.Pod)) {
				changed()
			}
		},
	})
	if err := errors.Join(err, nodeErr, podErr); err != nil {
		return nil, fmt.Errorf("watch nodes and pods: %w", err)
	}
	return &view{
		factory: factory, nodes: nodes.Lister(), pods: pods.Informer().GetIndexer(),
		synced: []cache.InformerSynced{onNode.HasSynced, onPod.HasSynced},
	}, nil
}

// run watches until ctx ends.
func (v *view) run(ctx context.Context) {
	v.factory.Start(ctx.Done())
	<-ctx.Done()
	v.factory.Shutdown()
}

func (v *view) podsOf(index, node string) []*corev1.Pod {
	objs, err := v.pods.ByIndex(index, node)
	if err != nil {
		return nil // the index is there
	}
	out := make([]*corev1.Pod, len(objs))
	for i := range objs {
		out[i] = objs[i].(*corev1.Pod)
	}
	return out
}

// strip leaves of an object what the leader looks at.
func strip(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		pod := &corev1.Pod{ObjectMeta: stripMeta(&o.ObjectMeta), Spec: corev1.PodSpec{NodeName: o.Spec.NodeName}}
		pod.Status.Phase = o.Status.Phase
		if c := podReady(o); c.Type != "" {
			pod.Status.Conditions = []corev1.PodCondition{c}
		}
		return pod, nil
	case *corev1.Node:
		node := &corev1.Node{ObjectMeta: stripMeta(&o.ObjectMeta), Spec: corev1.NodeSpec{Taints: o.Spec.Taints}}
		if c := nodeReady(o); c.Type != "" {
			node.Status.Conditions = []corev1.NodeCondition{c}
		}
		return node, nil
	}
	return obj, nil // a deletion that was missed carries what is stripped already
}

func stripMeta(o *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: o.Name, Namespace: o.Namespace, UID: o.UID, ResourceVersion: o.ResourceVersion,
		CreationTimestamp: o.CreationTimestamp, DeletionTimestamp: o.DeletionTimestamp,
	}
}

// nodeOf is the index key of a pod; only of a silenced one if silenced is set.
func nodeOf(obj any, silenced bool) []string {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" || silenced && !isSilenced(pod) {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

// sameNode reports whether nothing changed but the heartbeat.
func sameNode(a, b *corev1.Node) bool {
	x, y := nodeReady(a), nodeReady(b)
	return a.UID == b.UID && x.Status == y.Status && x.Reason == y.Reason && x.Message == y.Message &&
		hasTaint(a) == hasTaint(b)
}

func samePod(a, b *corev1.Pod) bool {
	x, y := podReady(a), podReady(b)
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName && x.Status == y.Status && x.Reason == y.Reason
}

// awaitSync returns once the view has everything, or ctx ends.
func (v *view) awaitSync(ctx context.Context) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, synced := range v.synced {
		for !synced() {
			select {
			case <-ctx.Done():
				return false
			case <-tick.C:
			}
		}
	}
	return true
}
