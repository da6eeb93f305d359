package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// door is one address behind which now this node is, now that: what a virtual
// address or a list of servers is to a client.
type door struct {
	b    *Bed
	mu   sync.Mutex
	node string
	open map[net.Conn]bool
}

// doorConn is a connection that the door closes when it moves.
type doorConn struct {
	net.Conn
	door *door
}

// Close closes the connection and lets the door forget it.
func (c *doorConn) Close() error {
	c.door.mu.Lock()
	delete(c.door.open, c)
	c.door.mu.Unlock()
	return c.Conn.Close()
}

func (d *door) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d.mu.Lock()
	node := d.node
	d.mu.Unlock()
	addr, err := d.b.Addr(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := d.b.Dial(ctx, "", "tcp", net.JoinHostPort(addr.String(), "6443"))
	if err != nil {
		return nil, err
	}
	conn := &doorConn{Conn: raw, door: d}
	d.mu.Lock()
	d.open[conn] = true
	moved := d.node != node
	d.mu.Unlock()
	if moved {
		return nil, errors.Join(errors.New("the door has moved"), conn.Close())
	}
	return conn, nil
}

// move puts another node behind the door and closes what was open.
func (d *door) move(node string) {
	d.mu.Lock()
	d.node = node
	var open []net.Conn
	for c := range d.open {
		open = append(open, c)
	}
	d.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// client goes through the door and never notices who is behind it.
func (d *door) client() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", d.b.File(d.b.Nodes[0], "/var/lib/moot/kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.Host = "https://192.0.2.1:6443"
	config.ServerName = "kubernetes"
	config.NextProtos = []string{"http/1.1"}
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	config.Dial = d.dial
	return kubernetes.NewForConfig(config)
}

// Roam moves two clients from node to node a number of times while objects are
// written through all nodes, each object through one: a reflector of client-go,
// which in the end must hold the last state of every object and none that was
// deleted, and a client that reads on one node and updates on the next, which
// must be refused every time, for what it read is no version there.
func (b *Bed) Roam(ctx context.Context, moves int, seed uint64) error {
	s, err := b.space(ctx, "roam", b.Nodes[0])
	if err != nil {
		return err
	}
	d := &door{b: b, node: b.Nodes[0], open: map[net.Conn]bool{}}
	client, err := d.client()
	if err != nil {
		return err
	}
	defer d.move(b.Nodes[0]) // closes what is open
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	reflector := s.reflector(client, store)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	writing, stop := context.WithCancel(ctx)
	defer stop()
	var reflecting sync.WaitGroup
	reflecting.Go(func() { reflector.RunWithContext(ctx) })
	defer reflecting.Wait()
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	var writes atomic.Int64
	for i, node := range b.Nodes {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		g.Go(func() error { return s.roamWriter(writing, gctx, node, rnd, &writes) })
	}
	refused := 0
	g.Go(func() error {
		defer stop()
		var err error
		refused, err = s.roamMoves(gctx, d, client, moves, rand.New(rand.NewPCG(seed, 1<<32)))
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.reflects(ctx, store); err != nil {
		return err
	}
	b.Printf("a reflector moved %d times between %d nodes under %d writes holds the last state of every object", moves, len(b.Nodes), writes.Load())
	b.Printf("updates on one node of what was read on another: %d, all refused", refused)
	return s.end(ctx, b.Nodes[0])
}

// reflector lists and watches the ConfigMaps of the namespace, and is as
// impatient as the moves are frequent.
func (s *space) reflector(c kubernetes.Interface, store cache.Store) *cache.Reflector {
	maps := c.CoreV1().ConfigMaps(s.name)
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return maps.Watch(ctx, o)
		},
	}, c), &corev1.ConfigMap{}, store, cache.ReflectorOptions{
		Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Cap: 50 * time.Millisecond, Steps: 5, Factor: 1.5},
	})
}

// roamWriter changes, deletes and makes again the objects of one node.
func (s *space) roamWriter(stop, ctx context.Context, node string, rnd *rand.Rand, writes *atomic.Int64) error {
	c, err := s.Client(node)
	if err != nil {
		return err
	}
	maps := c.CoreV1().ConfigMaps(s.name)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	there := map[string]bool{}
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s-%d", node, rnd.IntN(8))
		switch {
		case !there[name]:
			_, err = maps.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": strconv.Itoa(n)},
			}, metav1.CreateOptions{})
			there[name] = true
		case rnd.IntN(8) == 0:
			err = maps.Delete(ctx, name, metav1.DeleteOptions{})
			there[name] = false
		default:
			patch, _ := json.Marshal(map[string]any{"data": map[string]string{"n": strconv.Itoa(n)}})
			_, err = maps.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil && ctx.Err() == nil {
			// It may have been carried out regardless.
			if there[name], err = s.there(ctx, node, name); err != nil {
				return fmt.Errorf("write %s on %s: %w", name, node, err)
			}
		}
		writes.Add(1)
		select {
		case <-tick.C:
		case <-stop.Done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// there tells whether an object is there.
func (s *space) there(ctx context.Context, node, name string) (there bool, err error) {
	err = s.eventually(ctx, "a look at "+name+" on "+node, func(ctx context.Context) error {
		data, err := s.data(ctx, node, name)
		there = data != nil
		return err
	})
	return there, err
}

// roamMoves moves the door, and with each move tries an update of what was
// read before it.
func (s *space) roamMoves(ctx context.Context, d *door, c kubernetes.Interface, moves int, rnd *rand.Rand) (refused int, err error) {
	maps := c.CoreV1().ConfigMaps(s.name)
	if err := s.config(ctx, d.node, "read-here", map[string]string{"n": "0"}); err != nil {
		return 0, err
	}
	for _, node := range s.Nodes {
		if err := s.eventually(ctx, "the object on "+node, func(ctx context.Context) error {
			if got, err := s.data(ctx, node, "read-here"); err != nil || got == nil {
				return fmt.Errorf("%v, %w", got, err)
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range moves {
		var read *corev1.ConfigMap
		if err := s.every(ctx, 5*time.Millisecond, "read through the door", func(ctx context.Context) error {
			var err error
			read, err = maps.Get(ctx, "read-here", metav1.GetOptions{})
			return err
		}); err != nil {
			return refused, err
		}
		others := s.Others(d.node)
		d.move(others[rnd.IntN(len(others))])
		read.Data["n"] = strconv.Itoa(i)
		stale := false
		if err := s.every(ctx, 5*time.Millisecond, "a refusal", func(ctx context.Context) error {
			// A connection that the move has closed may fail it once.
			_, err := maps.Update(ctx, read, metav1.UpdateOptions{})
			stale = err == nil
			if apierrors.IsConflict(err) {
				return nil
			}
			return err
		}); err != nil {
			return refused, err
		}
		if stale {
			return refused, fmt.Errorf("move %d: an update of a version of another node succeeded", i)
		}
		refused++
		select {
		case <-tick.C:
		case <-ctx.Done():
			return refused, ctx.Err()
		}
	}
	return refused, nil
}

// reflects waits until the store holds what every node has.
func (s *space) reflects(ctx context.Context, store cache.Store) error {
	if _, err := s.SameDigest(ctx, s.Nodes); err != nil {
		return err
	}
	return s.eventually(ctx, "the reflector holds what the nodes have", func(ctx context.Context) error {
		for _, node := range s.Nodes {
			c, err := s.Client(node)
			if err != nil {
				return err
			}
			all, err := c.CoreV1().ConfigMaps(s.name).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, want := range all.Items {
				got, ok, err := store.GetByKey(s.name + "/" + want.Name)
				if err != nil || !ok {
					return fmt.Errorf("%s of %s is not held, %w", want.Name, node, err)
				}
				if have := got.(*corev1.ConfigMap); have.UID != want.UID || have.Data["n"] != want.Data["n"] {
					return fmt.Errorf("%s is held with %q, %s has %q", want.Name, have.Data["n"], node, want.Data["n"])
				}
			}
			if held := len(store.ListKeys()); held != len(all.Items) {
				return fmt.Errorf("%d objects are held, %s has %d", held, node, len(all.Items))
			}
		}
		return nil
	})
}
