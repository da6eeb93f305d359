package scenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	chaosShared = 8   // objects that all writers change, each its own field
	chaosChunk  = 100 // fields in an object of one writer
)

// Chaos writes through all nodes for a while, a number of times a second in
// all, and kills daemons and crashes nodes at random moments, one node at least
// being up at any time. Then all start, and every write that was acknowledged is
// there or its loss is a listed conflict. The same seed draws the same faults.
func (b *Bed) Chaos(ctx context.Context, d time.Duration, perSecond float64, seed uint64) error {
	b.Printf("chaos for %s: %.0f writes a second through %d nodes, seed %d", d, perSecond, len(b.Nodes), seed)
	s, err := b.space(ctx, "chaos", b.Nodes[0])
	if err != nil {
		return err
	}
	for i := range chaosShared {
		if err := s.config(ctx, b.Nodes[0], fmt.Sprintf("shared-%d", i), nil); err != nil {
			return err
		}
	}
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	log, state := newLedger(), &power{}
	stop, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	var failed atomic.Int64
	interval := time.Duration(float64(len(b.Nodes)) / perSecond * float64(time.Second))
	for i := range b.Nodes {
		w := &writer{space: s, log: log, power: state, name: fmt.Sprintf("w%d", i), rnd: rand.New(rand.NewPCG(seed, uint64(i))), failed: &failed}
		g.Go(func() error { return w.run(stop, gctx, interval) })
	}
	g.Go(func() error {
		defer cancel()
		return b.breakNodes(stop, gctx, state, rand.New(rand.NewPCG(seed, 1<<32)))
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	b.Printf("%d writes were not acknowledged", failed.Load())
	if err := log.check(ctx, s, b.Nodes); err != nil {
		return err
	}
	return s.end(ctx, b.Nodes[0])
}

// power is which nodes are down, lest the writers wait for them most of the
// time. It is told after a node has gone: what is under way then is cut off.
type power struct {
	mu   sync.Mutex
	down []string
}

func (p *power) set(down []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = slices.Clone(down)
}

func (p *power) get() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

// writer makes one write after the other, each through a node drawn at random.
type writer struct {
	*space
	log    *ledger
	power  *power
	name   string
	rnd    *rand.Rand
	failed *atomic.Int64
}

func (w *writer) run(stop, ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	counter := 0
	for n := 0; ; n++ {
		up := w.Others(w.power.get()...)
		node := up[w.rnd.IntN(len(up))]
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		if n%2 == 0 {
			w.own(one, node, n/2)
		} else {
			counter++
			w.shared(one, node, counter)
		}
		cancel()
		select {
		case <-tick.C:
		case <-stop.Done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// own writes a field that nobody else writes, nor this writer again, into an
// object of the writer's own.
func (w *writer) own(ctx context.Context, node string, n int) {
	object, field, value := fmt.Sprintf("%s-%d", w.name, n/chaosChunk), fmt.Sprintf("f%d", n), fmt.Sprintf("%s-%d-by-%s", w.name, n, node)
	data := map[string]string{field: value}
	err := w.patch(ctx, node, object, data)
	if missing(err) {
		// Not there, or not there yet: created on both it is a conflict, which
		// must then be listed.
		err = w.config(ctx, node, object, data)
	}
	if err != nil {
		w.failed.Add(1)
		return
	}
	w.log.field(object, field, value)
}

// shared moves this writer's field of a shared object up.
func (w *writer) shared(ctx context.Context, node string, n int) {
	object := fmt.Sprintf("shared-%d", n%chaosShared)
	if err := w.patch(ctx, node, object, map[string]string{w.name: strconv.Itoa(n)}); err != nil {
		w.failed.Add(1)
		return
	}
	w.log.counter(object, w.name, n)
}

// breakNodes takes nodes down and brings them back until stop, and then brings
// all back.
func (b *Bed) breakNodes(stop, ctx context.Context, state *power, rnd *rand.Rand) error {
	var down []string
	kills, crashes := 0, 0
	for stop.Err() == nil && ctx.Err() == nil {
		up := b.Others(down...)
		var err error
		switch n := rnd.IntN(4); {
		case len(down) > 0 && (n < 2 || len(up) == 1):
			back := down[rnd.IntN(len(down))]
			if err = b.Start(ctx, back); err == nil {
				down = slices.DeleteFunc(down, func(x string) bool { return x == back })
			}
		case n%2 == 0 && len(up) > 1:
			victim := up[rnd.IntN(len(up))]
			kills++
			down, err = append(down, victim), b.Kill(ctx, victim)
		case len(up) > 1:
			victim := up[rnd.IntN(len(up))]
			crashes++
			down, err = append(down, victim), b.Crash(ctx, victim)
		}
		state.set(down)
		if err != nil {
			return fmt.Errorf("%d kills and %d crashes, down are %s: %w", kills, crashes, strings.Join(down, " "), err)
		}
		select {
		case <-time.After(time.Duration(rnd.IntN(8000)) * time.Millisecond):
		case <-stop.Done():
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	b.Printf("%d daemons killed, %d nodes crashed", kills, crashes)
	if len(down) == 0 {
		return nil
	}
	return b.Start(ctx, down...)
}
