package scenario

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	joinWriters = 16
	joinPage    = 1000 // objects in one answer
	memoryLooks = 12   // at a daemon's memory, without finding less
)

// Join writes objects of some size through the first node and has the last one
// leave and come back as a new machine, in rounds. It measures how long the
// copy of the cluster's state takes there, and all until the node is ready, and
// counts the objects through the new node's API.
func (b *Bed) Join(ctx context.Context, objects, size, rounds int) error {
	via, joiner := b.Nodes[0], b.Nodes[len(b.Nodes)-1]
	s, err := b.space(ctx, "join", via)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.fill(ctx, via, objects, size); err != nil {
		return err
	}
	b.Printf("%d objects of %d bytes were written through %s in %s", objects, size, via, seconds(time.Since(began)))
	var copied, all []time.Duration
	for range rounds {
		if _, err := b.on(ctx, joiner, nil, "moot", "leave"); err != nil {
			return err
		}
		if err := b.Wipe(ctx, joiner); err != nil {
			return err
		}
		began = time.Now()
		if err := b.Start(ctx, joiner); err != nil {
			return err
		}
		all = append(all, time.Since(began))
		took, err := b.partTook(ctx, joiner, "membership")
		if err != nil {
			return err
		}
		copied = append(copied, took)
		if err := b.wholeAgain(ctx); err != nil {
			return err
		}
		n, err := s.count(ctx, joiner)
		if err != nil {
			return err
		}
		if n != objects {
			return fmt.Errorf("%s has %d of %d objects", joiner, n, objects)
		}
	}
	b.Printf("join with %d objects of %d bytes: the state is there after median %s of %d (%s), the node ready after %s (%s)",
		objects, size, seconds(median(copied)), rounds, list(copied), seconds(median(all)), list(all))
	for _, node := range b.Nodes {
		n, err := b.settledMemory(ctx, node)
		if err != nil {
			return err
		}
		b.Printf("%s: the daemon holds %d objects of %d bytes with %d MB of anonymous memory", node, objects, size, n>>20)
	}
	return nil // the namespace goes with the cluster: to delete so much takes minutes
}

// settledMemory returns the anonymous memory of a node's daemon, in bytes, once
// it has not sunk for a while.
func (b *Bed) settledMemory(ctx context.Context, node string) (int64, error) {
	lowest, looks := int64(math.MaxInt64), 0
	err := b.every(ctx, 5*time.Second, "memory of "+node+" settles", func(ctx context.Context) error {
		out, err := b.on(ctx, node, nil, "sh", "-c", "grep RssAnon /proc/$(pgrep -o -x moot)/status")
		if err != nil {
			return err
		}
		var kb int64
		if _, err := fmt.Sscanf(out, "RssAnon: %d kB", &kb); err != nil {
			return fmt.Errorf("read memory of %s: %q: %w", node, out, err)
		}
		if looks++; kb<<10 < lowest-lowest/50 {
			lowest, looks = kb<<10, 0
		}
		if looks < memoryLooks {
			return fmt.Errorf("it was %d MB %d times", lowest>>20, looks+1)
		}
		return nil
	})
	return lowest, err
}

// fill creates the objects, some at a time.
func (s *space) fill(ctx context.Context, via string, objects, size int) error {
	g, ctx := errgroup.WithContext(ctx)
	for w := range joinWriters {
		g.Go(func() error {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for i := w; i < objects; i += joinWriters {
				if err := s.config(ctx, via, fmt.Sprintf("object-%d", i), filler(rnd, size)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// filler is data of about size bytes, half of it random text, the rest alike.
func filler(rnd *rand.Rand, size int) map[string]string {
	random := make([]byte, size*3/8)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	plain := bytes.Repeat([]byte("listen 0.0.0.0:8080; upstream backend; "), 1+size/2/39)
	return map[string]string{"random": base64.StdEncoding.EncodeToString(random), "plain": string(plain[:size/2])}
}

// count counts the objects as a node has them.
func (s *space) count(ctx context.Context, via string) (int, error) {
	c, err := s.Client(via)
	if err != nil {
		return 0, err
	}
	n, next := 0, ""
	for {
		page, err := c.CoreV1().ConfigMaps(s.name).List(ctx, metav1.ListOptions{Limit: joinPage, Continue: next})
		if err != nil {
			return n, fmt.Errorf("list on %s: %w", via, err)
		}
		for _, m := range page.Items {
			if m.Name != "kube-root-ca.crt" { // every namespace has it
				n++
			}
		}
		if next = page.Continue; next == "" {
			return n, nil
		}
	}
}

// partTook is how long a part of a node's daemon took to become ready.
func (b *Bed) partTook(ctx context.Context, node, part string) (time.Duration, error) {
	m, err := b.Membership(ctx, node)
	if err != nil {
		return 0, err
	}
	for _, p := range m.Parts {
		if p.Name == part {
			return time.Duration(p.Seconds * float64(time.Second)), nil
		}
	}
	return 0, fmt.Errorf("%s does not say how long %s took", node, part)
}
