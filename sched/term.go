package sched

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrLeftBehind means that something of the term did not stop in time. It can
// reach the API server no more; its memory is not given back.
var ErrLeftBehind = errors.New("part of the term did not stop and is left behind, cut off")

// term is one run of leadership.
type term struct {
	cfg  *Config
	gate *gate
	dir  string // this term's files
}

// Run leads until ctx ends: nil, or [ErrLeftBehind], then. It returns earlier
// only with the error of a part that cannot go on. Terms must not overlap in a
// process.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configure term: %w", err)
	}
	dir := filepath.Join(cfg.StateDir, "term")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of the term: %w", err)
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); rmErr != nil && err == nil {
			err = fmt.Errorf("remove directory of the term: %w", rmErr)
		}
	}()
	gate, err := openGate(ctx, cfg.Term, cfg.API)
	if err != nil {
		return err
	}
	t := &term{cfg: &cfg, gate: gate, dir: dir}
	return t.run(ctx)
}

// run starts the parts, waits for the end of ctx or of a part, cuts the gate
// and waits for the parts.
func (t *term) run(ctx context.Context) error {
	inner, end := context.WithCancelCause(ctx)
	defer end(nil)
	if t.cfg.Exits != nil {
		stop := func(err error) { end(err) }
		t.cfg.Exits.end.Store(&stop)
		defer t.cfg.Exits.end.CompareAndSwap(&stop, nil)
	}
	// The gate is cut before anything that waits for inner learns of its end.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()

	config, client, err := t.leaderClient()
	if err == nil {
		err = awaitAPI(inner, config)
	}
	if err != nil || inner.Err() != nil {
		t.gate.cut()
		return endError(ctx, errors.Join(err, context.Cause(inner)))
	}
	t.cfg.Log.Info("leading", "term", t.cfg.Term)
	parts := map[string]func(context.Context) error{
		"controllers": t.runControllers,
		"scheduler":   t.runScheduler,
		"endpoints":   func(ctx context.Context) error { return t.keepEndpoints(ctx, client) },
	}
	done := make(chan struct{}, len(parts))
	for name, part := range parts {
		go func() {
			defer func() { done <- struct{}{} }()
			failed := errExit // stays when upstream ends the goroutine
			defer func() { end(fmt.Errorf("%s: %w", name, failed)) }()
			if failed = part(work); failed == nil {
				failed = errors.New("stopped by itself")
			}
		}()
	}
	<-inner.Done()
	t.gate.cut()
	stopWork()
	t.cfg.Log.Info("no longer leading", "term", t.cfg.Term)
	err = context.Cause(inner)
	timeout := time.NewTimer(t.cfg.StopWithin)
	defer timeout.Stop()
	for range parts {
		select {
		case <-done:
		case <-timeout.C:
			return errors.Join(ErrLeftBehind, endError(ctx, err))
		}
	}
	return endError(ctx, err)
}

// endError is nil for a term that was ended from outside: what its parts then
// said, upstream's scheduler always says something, does not matter.
func endError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (t *term) leaderClient() (*rest.Config, kubernetes.Interface, error) {
	path, err := t.termKubeconfig(t.cfg.Leader, "leader")
	if err != nil {
		return nil, nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, nil, fmt.Errorf("load kubeconfig of the leader: %w", err)
	}
	config.UserAgent = "moot-leader"
	config.Timeout = 10 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("make client of the leader: %w", err)
	}
	return config, client, nil
}

// awaitAPI returns once the API server is ready: upstream gives up on one that
// is not after some seconds, and keeps its informers' name then.
func awaitAPI(ctx context.Context, config *rest.Config) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("make client of the leader: %w", err)
	}
	err = wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, nil // not up yet
		}
		_ = resp.Body.Close() // fails when the request ran out of time: ask again
		return resp.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("await API server: %w", err)
	}
	return nil
}
