package scenario

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mootkube/moot/testbed"
)

// Bed is a running cluster with clients to it.
type Bed struct {
	*testbed.Cluster
	// Nodes are the names of all nodes.
	Nodes []string

	opts Options
	mu   sync.Mutex // guards clients and Out
	// clients are made as they are needed, one for each node.
	clients map[string]kubernetes.Interface
}

func newBed(c *testbed.Cluster, o Options) *Bed {
	b := &Bed{Cluster: c, opts: o, clients: map[string]kubernetes.Interface{}}
	for i := range o.Nodes {
		b.Nodes = append(b.Nodes, fmt.Sprintf("n%d", i+1))
	}
	return b
}

// up starts the cluster and gives it the web app's image.
func (b *Bed) up(ctx context.Context) error {
	began := time.Now()
	if err := b.Up(ctx, len(b.Nodes)); err != nil {
		return err
	}
	b.Printf("%d nodes were one cluster %s after the first was switched on", len(b.Nodes), seconds(time.Since(began)))
	return b.loadImage(ctx)
}

func (b *Bed) loadImage(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "moot-image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "web.tar")
	if err := b.BuildWebImage(ctx, testbed.DemoImage, file); err != nil {
		return err
	}
	return b.LoadImage(ctx, file)
}

// Printf tells what was measured, a line.
func (b *Bed) Printf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, _ = fmt.Fprintf(b.opts.Out, format+"\n", args...)
}

// Others are the nodes but for some.
func (b *Bed) Others(but ...string) []string {
	return slices.DeleteFunc(slices.Clone(b.Nodes), func(n string) bool { return slices.Contains(but, n) })
}

// Client talks to the API of one node, from the bridge. It has HTTP/1.1 alone:
// a connection to a node that has crashed costs the request that waits on it,
// not those after it.
func (b *Bed) Client(node string) (kubernetes.Interface, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.clients[node]; c != nil {
		return c, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", b.File(node, "/var/lib/moot/kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", node, err)
	}
	addr, err := b.Addr(node)
	if err != nil {
		return nil, err
	}
	config.Host = "https://" + net.JoinHostPort(addr.String(), "6443")
	config.NextProtos = []string{"http/1.1"}
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	config.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return b.Dial(ctx, "", network, addr)
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", node, err)
	}
	b.clients[node] = c
	return c, nil
}

// Kubectl runs kubectl on a node.
func (b *Bed) Kubectl(ctx context.Context, node string, args ...string) (string, error) {
	return b.on(ctx, node, nil, append([]string{"kubectl"}, args...)...)
}

// on runs a command on a node and returns what it prints; with an error, both
// outputs are in it.
func (b *Bed) on(ctx context.Context, node string, env []string, argv ...string) (string, error) {
	var out, errOut bytes.Buffer
	code, err := b.Exec(ctx, node, testbed.Command{Argv: argv, Env: env, Stdout: &out, Stderr: &errOut})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d: %s%s", code, out.Bytes(), bytes.TrimSpace(errOut.Bytes()))
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w", strings.Join(argv, " "), node, err)
	}
	return strings.TrimSpace(out.String()), nil
}

// eventually tries until there is no error, for as long as patience lasts.
func (b *Bed) eventually(ctx context.Context, what string, try func(context.Context) error) error {
	return b.every(ctx, 200*time.Millisecond, what, try)
}

func (b *Bed) every(ctx context.Context, interval time.Duration, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.Patience, fmt.Errorf("not within %s", b.opts.Patience))
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last error
	for {
		one, done := context.WithTimeout(ctx, 30*time.Second)
		err := try(one)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // not the end of the wait itself
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), last)
		}
	}
}

// holds looks for a while whether something stays true.
func (b *Bed) holds(ctx context.Context, d time.Duration, what string, check func(context.Context) error) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := check(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// wholeAgain waits until all nodes are one cluster with equal replicas.
func (b *Bed) wholeAgain(ctx context.Context) error {
	if err := b.WaitWhole(ctx, b.Nodes); err != nil {
		return err
	}
	_, err := b.SameDigest(ctx, b.Nodes)
	return err
}

// SameDigest waits until the replicas of nodes are equal, to the byte as the
// digest tells.
func (b *Bed) SameDigest(ctx context.Context, nodes []string) (string, error) {
	var digest string
	err := b.eventually(ctx, "equal digests on "+strings.Join(nodes, ", "), func(ctx context.Context) error {
		seen := map[string][]string{}
		for _, node := range nodes {
			m, err := b.Membership(ctx, node)
			if err != nil {
				return err
			}
			if m.Digest == "" {
				return fmt.Errorf("%s tells no digest", node)
			}
			seen[m.Digest] = append(seen[m.Digest], node)
			digest = m.Digest
		}
		if len(seen) > 1 {
			return fmt.Errorf("%d digests: %v", len(seen), seen)
		}
		return nil
	})
	return digest, err
}

// Leader is whom a node takes for the leader.
func (b *Bed) Leader(ctx context.Context, via string) (string, error) {
	m, err := b.Membership(ctx, via)
	if err == nil && m.Leader == "" {
		err = fmt.Errorf("%s knows no leader", via)
	}
	return m.Leader, err
}

// OneLeader waits until the nodes, which are connected, all name the same one
// of them.
func (b *Bed) OneLeader(ctx context.Context, nodes []string) (string, error) {
	var leader string
	err := b.eventually(ctx, "one leader of "+strings.Join(nodes, ", "), func(ctx context.Context) error {
		leader = ""
		for _, node := range nodes {
			l, err := b.Leader(ctx, node)
			if err != nil {
				return err
			}
			if !slices.Contains(nodes, l) {
				return fmt.Errorf("%s names %s, which is not with it", node, l)
			}
			if leader != "" && l != leader {
				return fmt.Errorf("%s names %s, others %s", node, l, leader)
			}
			leader = l
		}
		return nil
	})
	return leader, err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// quantile of durations, which it sorts. The p-th of n is the one at rank p·n,
// rounded up.
func quantile(ds []time.Duration, p float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	rank := int(p*float64(len(ds)) + 0.999999)
	return ds[min(max(rank, 1), len(ds))-1]
}

func median(ds []time.Duration) time.Duration { return quantile(ds, 0.5) }

// list shows measured times, in seconds.
func list(ds []time.Duration) string {
	var out []string
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%.2f", d.Seconds()))
	}
	return strings.Join(out, " ")
}

// cutWord removes one word from a text.
func cutWord(text, word string) (rest string, ok bool) {
	words := strings.Fields(text)
	i := slices.Index(words, word)
	if i < 0 {
		return text, false
	}
	return strings.Join(slices.Delete(words, i, i+1), " "), true
}
