package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// question is what the outer program asks of the one on the node.
type question struct {
	Kind    string    `json:"kind"`    // start, pods or load
	Node    string    `json:"node"`    // its name
	Since   time.Time `json:"since"`   // start: heartbeats from before do not count
	Count   int       `json:"count"`   // pods one at a time; or to leave running
	Batch   int       `json:"batch"`   // pods at once
	Objects int       `json:"objects"` // ConfigMaps
}

// startTimes answers start.
type startTimes struct {
	API  time.Time `json:"api"`
	Node time.Time `json:"node"`
}

func runInside(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("inside a node: one question is wanted")
	}
	var q question
	if err := json.Unmarshal([]byte(args[0]), &q); err != nil {
		return fmt.Errorf("read question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	client, err := connect(ctx)
	if err != nil {
		return err
	}
	var answer any
	switch q.Kind {
	case "start":
		answer, err = watchStart(ctx, client, q)
	case "pods":
		answer, err = startPods(ctx, client, q)
	case "load":
		answer, err = struct{}{}, load(ctx, client, q)
	default:
		err = fmt.Errorf("unknown question %q", q.Kind)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

// connect waits for the administrator's kubeconfig and makes a client that
// does not hold itself back.
func connect(ctx context.Context) (kubernetes.Interface, error) {
	path := os.Getenv("KUBECONFIG")
	var client kubernetes.Interface
	err := poll(ctx, 10*time.Millisecond, func(context.Context) bool {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			return false // not written yet, or not yet all of it
		}
		config.QPS = -1
		client, err = kubernetes.NewForConfig(config)
		return err == nil
	})
	return client, err
}

// watchStart notes when the API is ready and when the node says it is.
func watchStart(ctx context.Context, client kubernetes.Interface, q question) (startTimes, error) {
	var t startTimes
	rest := client.Discovery().RESTClient()
	err := poll(ctx, 20*time.Millisecond, func(ctx context.Context) bool {
		code := 0
		rest.Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		return code == http.StatusOK
	})
	t.API = time.Now()
	if err != nil {
		return t, fmt.Errorf("wait for the API: %w", err)
	}
	err = poll(ctx, 20*time.Millisecond, func(ctx context.Context) bool {
		node, err := client.CoreV1().Nodes().Get(ctx, q.Node, metav1.GetOptions{})
		return err == nil && nodeReady(node, q.Since)
	})
	t.Node = time.Now()
	if err != nil {
		return t, fmt.Errorf("wait for the node: %w", err)
	}
	return t, nil
}

// nodeReady tells whether node has said that it is ready, at or after since:
// the API keeps whole seconds.
func nodeReady(node *corev1.Node, since time.Time) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second))
		}
	}
	return false
}

// poll calls done until it says so or ctx ends.
func poll(ctx context.Context, every time.Duration, done func(context.Context) bool) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// pause lets d pass, or returns when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
