package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	namespace  = "bench"
	webImage   = "moot.example/web:v1"
	pauseImage = "moot.example/pause:v1"
)

// podTimes is one pod's start as a watch sees it, in time after the request
// that created it was sent.
type podTimes struct {
	Bound   time.Duration `json:"bound"`   // a node is named
	Sandbox time.Duration `json:"sandbox"` // its network is there
	Running time.Duration `json:"running"`
}

// podRuns answers pods.
type podRuns struct {
	Single    []podTimes      `json:"single"`
	SingleCPU []time.Duration `json:"singleCPU"` // of the whole node but this program
	Batch     time.Duration   `json:"batch"`     // until the last was running
	BatchCPU  time.Duration   `json:"batchCPU"`
}

// startPods starts pods one at a time and then some at once. The first pods
// after a start of the node find nothing in any cache and are not counted.
func startPods(ctx context.Context, client kubernetes.Interface, q question) (podRuns, error) {
	var out podRuns
	if err := makeNamespace(ctx, client); err != nil {
		return out, err
	}
	const uncounted = 2
	for i := range uncounted + q.Count {
		before, err := nodeCPU()
		if err != nil {
			return out, err
		}
		times, err := startBatch(ctx, client, fmt.Sprintf("one-%d", i), 1)
		if err != nil {
			return out, err
		}
		after, err := nodeCPU()
		if err != nil {
			return out, err
		}
		if i >= uncounted {
			out.Single = append(out.Single, times[0])
			out.SingleCPU = append(out.SingleCPU, after-before)
		}
		if err := removePods(ctx, client); err != nil {
			return out, err
		}
	}
	before, err := nodeCPU()
	if err != nil {
		return out, err
	}
	times, err := startBatch(ctx, client, "batch", q.Batch)
	if err != nil {
		return out, err
	}
	after, err := nodeCPU()
	if err != nil {
		return out, err
	}
	for _, t := range times {
		out.Batch = max(out.Batch, t.Running)
	}
	out.BatchCPU = after - before
	return out, removePods(ctx, client)
}

func makeNamespace(ctx context.Context, client kubernetes.Interface) error {
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	_, err := client.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	// Pods are refused until the controllers have made the account.
	return poll(ctx, 50*time.Millisecond, func(ctx context.Context) bool {
		_, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	})
}

func pod(name string) *corev1.Pod {
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "web", Image: webImage, ImagePullPolicy: corev1.PullIfNotPresent,
			}},
		},
	}
}

// startBatch creates n pods at once and follows them until all run.
func startBatch(ctx context.Context, client kubernetes.Interface, prefix string, n int) ([]podTimes, error) {
	pods := client.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	begin := time.Now()
	created := make(chan error, n)
	for i := range n {
		go func() {
			_, err := pods.Create(ctx, pod(fmt.Sprintf("%s-%d", prefix, i)), metav1.CreateOptions{})
			created <- err
		}()
	}
	times, err := follow(ctx, w, prefix, n, begin)
	for range n {
		err = errors.Join(err, <-created)
	}
	return times, err
}

// follow reads a watch until n pods with the prefix run.
func follow(ctx context.Context, w watch.Interface, prefix string, n int, begin time.Time) ([]podTimes, error) {
	seen := map[string]*podTimes{}
	running := 0
	for running < n {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %d pods, %d run: %w", n, running, ctx.Err())
		case event, ok := <-w.ResultChan():
			if !ok {
				return nil, errors.New("wait for pods: the watch has ended")
			}
			p, ok := event.Object.(*corev1.Pod)
			if !ok || !strings.HasPrefix(p.Name, prefix) {
				continue
			}
			t := seen[p.Name]
			if t == nil {
				t = &podTimes{}
				seen[p.Name] = t
			}
			if t.note(p, time.Since(begin)) {
				running++
			}
		}
	}
	out := make([]podTimes, 0, n)
	for _, t := range seen {
		out = append(out, *t)
	}
	return out, nil
}

// note records how far a pod is and tells whether it just began to run.
func (t *podTimes) note(p *corev1.Pod, after time.Duration) bool {
	if t.Bound == 0 && p.Spec.NodeName != "" {
		t.Bound = after
	}
	for _, c := range p.Status.Conditions {
		if t.Sandbox == 0 && c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue {
			t.Sandbox = after
		}
	}
	if t.Running == 0 && p.Status.Phase == corev1.PodRunning {
		t.Running = after
		return true
	}
	return false
}

// removePods deletes all pods, waits until they are gone and lets the node
// clean up after them.
func removePods(ctx context.Context, client kubernetes.Interface) error {
	pods := client.CoreV1().Pods(namespace)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	err := poll(ctx, 100*time.Millisecond, func(ctx context.Context) bool {
		list, err := pods.List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0
	})
	if err != nil {
		return err
	}
	return pause(ctx, time.Second)
}

// load leaves pods running and objects stored.
func load(ctx context.Context, client kubernetes.Interface, q question) error {
	if err := makeNamespace(ctx, client); err != nil {
		return err
	}
	if _, err := startBatch(ctx, client, "idle", q.Count); err != nil {
		return err
	}
	value := strings.Repeat("x", 1024)
	for i := range q.Objects {
		object := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("object-%d", i)},
			Data:       map[string]string{"value": value},
		}
		if _, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}
