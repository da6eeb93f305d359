package sched

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// bench is a keeper's loop reduced to one set of jobs that is asked for at
// each look.
type bench struct {
	work *work
	wake chan struct{}
	jobs func() []job
	gap  time.Duration // of jobs that are to be done again; zero: once
}

func newBench() *bench {
	b := &bench{wake: make(chan struct{}, 1)}
	b.work = newWork(func() {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	})
	return b
}

// run looks as often as the work asks for until d has passed.
func (b *bench) run(ctx context.Context, d time.Duration) {
	over := time.After(d)
	for {
		b.work.begin(time.Now())
		for _, j := range b.jobs() {
			b.work.doEvery(ctx, j, b.gap)
		}
		select {
		case <-over:
			return
		case <-b.wake:
		case <-time.After(b.work.end()):
		}
	}
}

func TestWorkIsDoneOncePerVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		version, ran := "1", map[string]int{}
		b.jobs = func() []job {
			return []job{{key: "k", version: version, pool: b.work.nodes, run: func(context.Context) error {
				ran[version]++
				return nil
			}}}
		}
		b.run(t.Context(), time.Minute)
		version = "2"
		b.run(t.Context(), time.Minute)
		b.work.wait()
		if ran["1"] != 1 || ran["2"] != 1 {
			t.Errorf("ran %v", ran)
		}
	})
}

func TestWorkIsTriedAgain(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "p", errors.New("newer"))
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		start := time.Now()
		version, answers, ran := "1", []error{errors.New("down"), conflict, nil}, []time.Duration{}
		b.jobs = func() []job {
			return []job{{key: "k", node: "n", version: version, pool: b.work.nodes, run: func(context.Context) error {
				ran = append(ran, time.Since(start))
				err := answers[0]
				answers = answers[1:]
				if apierrors.IsConflict(err) {
					version = "2" // the newer one arrives
				}
				return err
			}}}
		}
		b.run(t.Context(), workRetry/2)
		if got := b.work.failures(); got["n"] != "down" {
			t.Errorf("failures %v", got)
		}
		b.run(t.Context(), time.Minute)
		b.work.wait()
		if fmt.Sprint(ran) != "[0s 1s 1s]" {
			t.Errorf("ran after %v", ran)
		}
		if got := b.work.failures(); len(got) != 0 {
			t.Errorf("failures %v", got)
		}
	})
}

func TestWorkIsDoneEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		ran := 0
		b.gap = 10 * time.Second
		b.jobs = func() []job {
			return []job{{key: "lease", pool: b.work.nodes, run: func(context.Context) error { ran++; return nil }}}
		}
		b.run(t.Context(), 95*time.Second)
		b.work.wait()
		if ran != 10 {
			t.Errorf("ran %d times in 95 s, every 10 s", ran)
		}
	})
}

// Pods whose writes hang do not hold up a node, and no more than so many are
// under way.
func TestWorkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		under, most, done := 0, 0, map[string]bool{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		nodeAt, start := time.Duration(-1), time.Now()
		b.jobs = func() []job {
			jobs := make([]job, 0, 101)
			for i := range 100 {
				key := fmt.Sprint("pod ", i)
				jobs = append(jobs, job{key: key, version: "1", pool: b.work.pods, run: func(ctx context.Context) error {
					b.work.mu.Lock()
					under++
					most = max(most, under)
					b.work.mu.Unlock()
					defer func() {
						b.work.mu.Lock()
						defer b.work.mu.Unlock()
						under--
						done[key] = true
					}()
					<-ctx.Done() // until workTimeout
					return nil
				}})
			}
			return append(jobs, job{key: "node", version: "1", pool: b.work.nodes, run: func(context.Context) error {
				nodeAt = time.Since(start)
				return nil
			}})
		}
		b.run(ctx, 41*time.Second)
		b.work.wait()
		if most != workPods || len(done) != 100 || nodeAt != 0 {
			t.Errorf("%d at a time, %d done, the node after %s", most, len(done), nodeAt)
		}
	})
}
