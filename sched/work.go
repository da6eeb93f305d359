package sched

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	workTimeout = 10 * time.Second // of one thing to do
	workRetry   = time.Second      // after a failure
	workNodes   = 16               // things under way about nodes
	workPods    = 32               // things under way about pods
)

// pool bounds how much is under way at a time. Nodes and pods have their own,
// so that pods whose writes hang do not hold up what makes pods move.
type pool chan struct{}

// job is one thing to do about one object.
type job struct {
	key  string // of the job: what and about which object
	node string // whose node's report has its failure
	// version of the object it was decided on: done once, it is not done again
	// for the same version. Empty: it is not about a version.
	version string
	pool    pool
	run     func(context.Context) error
}

// work runs jobs beside the keeper, each at most once at a time. The keeper
// decides afresh at each look what there is to do; what is under way or was
// just done for the same version is left out. Only the keeper calls it.
type work struct {
	wake        func()
	nodes, pods pool
	running     sync.WaitGroup

	now  time.Time     // of the look under way
	next time.Duration // until the look after it

	mu   sync.Mutex
	jobs map[string]*jobState
}

// jobState is what is known of a job asked for at the last looks.
type jobState struct {
	asked   bool // at this look
	running bool
	done    string    // version it was done for
	doneAt  time.Time // zero: never
	retryAt time.Time // zero: at once
	stale   string    // version that it met a newer one of: another is tried at once
	node    string
	err     string
}

func newWork(wake func()) *work {
	return &work{wake: wake, nodes: make(pool, workNodes), pods: make(pool, workPods), jobs: map[string]*jobState{}}
}

// begin starts a look.
func (w *work) begin(now time.Time) {
	w.now, w.next = now, keeperLooks
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, state := range w.jobs {
		state.asked = false
	}
}

// do starts j unless it is under way, done, or to be tried again only later.
func (w *work) do(ctx context.Context, j job) { w.doEvery(ctx, j, 0) }

// doEvery is do for what is to be done again once period has passed.
func (w *work) doEvery(ctx context.Context, j job, period time.Duration) {
	w.mu.Lock()
	state := w.jobs[j.key]
	if state == nil {
		state = &jobState{node: j.node}
		w.jobs[j.key] = state
	}
	state.asked = true
	wait := state.retryAt.Sub(w.now)
	if state.stale != "" && state.stale != j.version {
		wait = 0
	}
	if period > 0 && !state.doneAt.IsZero() {
		wait = max(wait, state.doneAt.Add(period).Sub(w.now))
	}
	isDone := period == 0 && !state.doneAt.IsZero() && state.done == j.version
	busy := state.running || isDone
	w.mu.Unlock()
	switch {
	case busy:
		return
	case wait > 0:
		w.next = min(w.next, wait)
		return
	}
	select {
	case j.pool <- struct{}{}:
	default:
		w.next = min(w.next, unfinished) // and one that ends asks for a look
		return
	}
	w.mu.Lock()
	state.running = true
	w.mu.Unlock()
	w.running.Go(func() { w.run(ctx, j, state) })
}

func (w *work) run(ctx context.Context, j job, state *jobState) {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	err := j.run(ctx)
	<-j.pool
	w.mu.Lock()
	defer w.wake()
	defer w.mu.Unlock()
	state.running, state.stale, state.err = false, "", ""
	switch {
	case err == nil:
		state.done, state.doneAt, state.retryAt = j.version, time.Now(), time.Time{}
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		// It has changed since. What changed is on its way here.
		state.stale, state.retryAt = j.version, time.Now().Add(workRetry)
	default:
		state.retryAt, state.err = time.Now().Add(workRetry), err.Error()
	}
}

// end ends a look, forgets what was not asked for and says when the first of
// the rest is due.
func (w *work) end() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, state := range w.jobs {
		if !state.asked && !state.running {
			delete(w.jobs, key)
		}
	}
	return max(w.next, keeperRests)
}

// failures are the last failures by node.
func (w *work) failures() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]string{}
	for _, state := range w.jobs {
		if state.err != "" {
			out[state.node] = state.err
		}
	}
	return out
}

// wait returns when nothing is under way.
func (w *work) wait() { w.running.Wait() }
