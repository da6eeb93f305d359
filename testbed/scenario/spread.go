package scenario

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// sightings are the moments at which one node's watch showed each change.
type sightings struct {
	node string
	mu   sync.Mutex
	at   []time.Time // by number of the change; zero: not yet
	last chan struct{}
}

// saw notes that changes up to n are visible: a watch may show a later one
// alone.
func (s *sightings) saw(n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := min(n, len(s.at)-1); i >= 0 && s.at[i].IsZero(); i-- {
		s.at[i] = now
		if i == len(s.at)-1 {
			close(s.last)
		}
	}
}

// Spread makes changes of an object of some size through one node, one at a
// time, and measures when a watch on each node shows them, all by the clock of
// this process. Then it compares the digests.
func (b *Bed) Spread(ctx context.Context, from string, changes, size int, every time.Duration) error {
	s, err := b.space(ctx, "spread", from)
	if err != nil {
		return err
	}
	pad := strings.Repeat("x", size)
	if err := s.config(ctx, from, "change", map[string]string{"n": "-1", "pad": pad}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	var seen []*sightings
	for _, node := range b.Nodes {
		w := &sightings{node: node, at: make([]time.Time, changes), last: make(chan struct{})}
		seen = append(seen, w)
		in, err := s.watchChange(gctx, node)
		if err != nil {
			return err
		}
		defer in.Stop()
		g.Go(func() error { return w.run(gctx, in) })
	}
	sent, acked := make([]time.Time, changes), make([]time.Time, changes)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range changes {
		sent[i] = time.Now()
		if err := s.patch(gctx, from, "change", map[string]string{"n": strconv.Itoa(i), "pad": pad}); err != nil {
			return err
		}
		acked[i] = time.Now()
		<-tick.C
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.reportSpread(from, seen, sent, acked)
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	b.Printf("all %d digests equal", len(b.Nodes))
	return s.end(ctx, from)
}

// watchChange waits until the object is on a node and watches it there.
func (s *space) watchChange(ctx context.Context, node string) (watch.Interface, error) {
	c, err := s.Client(node)
	if err != nil {
		return nil, err
	}
	var version string
	err = s.eventually(ctx, "the object on "+node, func(ctx context.Context) error {
		m, err := c.CoreV1().ConfigMaps(s.name).Get(ctx, "change", metav1.GetOptions{})
		if err == nil {
			version = m.ResourceVersion
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	in, err := c.CoreV1().ConfigMaps(s.name).Watch(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=change", ResourceVersion: version,
	})
	if err != nil {
		return nil, fmt.Errorf("watch on %s: %w", node, err)
	}
	return in, nil
}

// run takes a watch's events until the last change is seen.
func (w *sightings) run(ctx context.Context, in watch.Interface) error {
	for {
		select {
		case e, ok := <-in.ResultChan():
			now := time.Now()
			if !ok {
				return fmt.Errorf("the watch on %s ended", w.node)
			}
			m, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				return fmt.Errorf("the watch on %s: %s: %v", w.node, e.Type, e.Object)
			}
			n, err := strconv.Atoi(m.Data["n"])
			if err != nil {
				return err
			}
			w.saw(n, now)
		case <-w.last:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the watch on %s has not shown the last change: %w", w.node, ctx.Err())
		}
	}
}

func (s *space) reportSpread(from string, seen []*sightings, sent, acked []time.Time) {
	line := func(what string, at func(i int) time.Time) {
		ds := make([]time.Duration, len(sent))
		for i := range sent {
			ds[i] = max(0, at(i).Sub(sent[i]))
		}
		s.Printf("%-34s median %9s   p99 %9s   (%d changes)", what, millis(median(ds)), millis(quantile(ds, 0.99)), len(ds))
	}
	line("sent to "+from+", acknowledged", func(i int) time.Time { return acked[i] })
	for _, w := range seen {
		line("sent to "+from+", watched on "+w.node, func(i int) time.Time { return w.at[i] })
	}
	line("sent to "+from+", watched everywhere", func(i int) time.Time {
		var last time.Time
		for _, w := range seen {
			if w.at[i].After(last) {
				last = w.at[i]
			}
		}
		return last
	})
}
