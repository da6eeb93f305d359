package sched

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
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
	cfg   *Config
	gate  *gate
	pulse *pulse
	dir   string // this term's files
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
	pulse, err := newPulse(cfg.MaxPause)
	if err != nil {
		return err
	}
	gate, err := openGate(ctx, cfg.Term, cfg.API, pulse)
	if err != nil {
		return err
	}
	t := &term{cfg: &cfg, gate: gate, pulse: pulse, dir: dir}
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

	beating := make(chan struct{})
	go func() {
		defer close(beating)
		if err := t.pulse.run(inner); err != nil {
			t.gate.shut()
			end(err)
		}
	}()
	defer func() { end(nil); <-beating }()

	config, err := t.leaderConfig()
	var clients leaderClients
	if err == nil {
		clients, err = newLeaderClients(config)
	}
	if err == nil {
		err = awaitAPI(inner, config)
	}
	if err != nil || inner.Err() != nil {
		t.gate.cut()
		return endError(ctx, errors.Join(err, context.Cause(inner)))
	}
	t.cfg.Log.Info("leading", "term", t.cfg.Term)
	parts := t.parts(clients)
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

// parts are what runs in a term, by name.
func (t *term) parts(clients leaderClients) map[string]func(context.Context) error {
	toEndpoints, toNodes := make(chan struct{}, 1), make(chan struct{}, 1)
	parts := map[string]func(context.Context) error{
		"controllers": t.runControllers,
		"scheduler":   t.runScheduler,
		"endpoints":   func(ctx context.Context) error { return t.keepEndpoints(ctx, clients.bounded, toEndpoints) },
		"addresses":   func(ctx context.Context) error { return t.keepAddresses(ctx, clients.watching) },
		"unique":      func(ctx context.Context) error { return t.keepUnique(ctx, clients.watching) },
		"members":     func(ctx context.Context) error { return passOn(ctx, t.cfg.Changed, toEndpoints, toNodes) },
	}
	if t.cfg.Nodes != nil {
		parts["nodes"] = func(ctx context.Context) error { return t.keepNodes(ctx, clients.watching, toNodes) }
	}
	return parts
}

// passOn repeats the signals of from to each of to, which hold one, until ctx
// ends.
func passOn(ctx context.Context, from <-chan struct{}, to ...chan<- struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-from:
		}
		for _, ch := range to {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}

// endError is nil for a term that was ended from outside: what its parts then
// said, upstream's scheduler always says something, does not matter.
func endError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (t *term) leaderConfig() (*rest.Config, error) {
	path, err := t.termKubeconfig(t.cfg.Leader, "leader")
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig of the leader: %w", err)
	}
	config.UserAgent = "moot-leader"
	config.QPS = -1 // the API server is in the same process
	config.Timeout = 10 * time.Second
	return config, nil
}

// leaderClients are two ways for the leader to the API server.
type leaderClients struct {
	bounded  kubernetes.Interface // every request takes some seconds at most
	watching kubernetes.Interface // for requests that last
}

func newLeaderClients(config *rest.Config) (clients leaderClients, err error) {
	if clients.bounded, err = kubernetes.NewForConfig(config); err != nil {
		return clients, fmt.Errorf("make client of the leader: %w", err)
	}
	config = rest.CopyConfig(config)
	config.Timeout = 0
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	if clients.watching, err = kubernetes.NewForConfig(config); err != nil {
		return clients, fmt.Errorf("make watching client of the leader: %w", err)
	}
	return clients, nil
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
