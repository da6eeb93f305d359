package scenario

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// workEvery is how often there is something to do for the controllers.
const workEvery = 100 * time.Millisecond

// work gives the controllers something to do all the time, Deployments of no
// pods, and notes when they do it: each is to get a ReplicaSet.
type work struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	watch   watch.Interface

	mu     sync.Mutex
	done   []time.Time
	events chan struct{} // of capacity one: there is something new in done
}

// actions are the moments at which controllers acted, in order.
type actions []time.Time

// startWork makes and watches through one node. The work has to be ended.
func (s *space) startWork(ctx context.Context, via string) (*work, error) {
	c, err := s.Client(via)
	if err != nil {
		return nil, err
	}
	sets, err := c.AppsV1().ReplicaSets(s.name).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("watch on %s: %w", via, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &work{stop: cancel, watch: sets, events: make(chan struct{}, 1)}
	w.running.Go(func() { w.note() })
	w.running.Go(func() { s.makeWork(ctx, c) })
	return w, nil
}

// makeWork creates Deployments. One that fails is left out.
func (s *space) makeWork(ctx context.Context, c kubernetes.Interface) {
	tick := time.NewTicker(workEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		name := fmt.Sprintf("work-%d", i)
		_, _ = c.AppsV1().Deployments(s.name).Create(ctx, deployment(name, map[string]string{"app": name}, 0), metav1.CreateOptions{})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *work) note() {
	for e := range w.watch.ResultChan() {
		if _, ok := e.Object.(*appsv1.ReplicaSet); !ok || e.Type != watch.Added {
			continue
		}
		w.mu.Lock()
		w.done = append(w.done, time.Now())
		w.mu.Unlock()
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
	close(w.events)
}

// next waits for an action after a moment.
func (w *work) next(ctx context.Context, after time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		w.mu.Lock()
		last := time.Time{}
		if len(w.done) > 0 {
			last = w.done[len(w.done)-1]
		}
		w.mu.Unlock()
		if last.After(after) {
			return nil
		}
		select {
		case _, ok := <-w.events:
			if !ok {
				return errors.New("the watch of the ReplicaSets ended")
			}
		case <-ctx.Done():
			return fmt.Errorf("no controller acts: %w", ctx.Err())
		}
	}
}

// end stops the work and returns what was done; it may be called again.
func (w *work) end() actions {
	w.stop()
	w.watch.Stop()
	w.running.Wait()
	return w.done
}

// afterLongestGap is how long after a moment the longest time without an action
// ended, among those that ended after it, and how long that was.
func (a actions) afterLongestGap(began time.Time) (end, longest time.Duration) {
	last := began
	for _, at := range a {
		if !at.After(began) {
			continue
		}
		if gap := at.Sub(last); gap > longest {
			longest, end = gap, at.Sub(began)
		}
		last = at
	}
	return end, longest
}
