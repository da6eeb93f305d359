package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/api"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/testbed/loopback"
)

// A process can hold one API server, so each node's is one of its own; stores
// and replication are the test's.
const (
	serveEnv   = "MOOT_TEST_SERVE"    // a node, in JSON
	noGuardEnv = "MOOT_TEST_NO_GUARD" // to see the tests fail
)

// node is a member of a test's cluster.
type node struct {
	Number    crdt.NodeNumber
	Port      int
	Socket    string
	Keys      string // directory
	Unguarded bool
	store     *store.Store
	admin     *rest.Config
	client    kubernetes.Interface
	mu        sync.Mutex
	applied   int64       // by the peer, of this store's revisions
	held      []heldWrite // in order
}

// heldWrite is a write that waits for the peer to have it.
type heldWrite struct {
	revision int64
	release  func()
}

// hold is [store.Config.Hold].
func (n *node) hold(revision int64, release func()) {
	n.mu.Lock()
	n.held = append(n.held, heldWrite{revision, release})
	n.mu.Unlock()
	n.settle(0)
}

// settle answers the writes that the peer has.
func (n *node) settle(applied int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied = max(n.applied, applied)
	for len(n.held) > 0 && n.held[0].revision <= n.applied {
		n.held[0].release()
		n.held = n.held[1:]
	}
}

// TestServeNode is not a test: it is the API server of a node.
func TestServeNode(t *testing.T) {
	spec := os.Getenv(serveEnv)
	if spec == "" {
		t.Skip("run by others")
	}
	var n node
	check(t, json.Unmarshal([]byte(spec), &n))
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	cfg := api.DefaultConfig()
	cfg.EtcdSocket, cfg.Port, cfg.NodeIP = n.Socket, n.Port, netip.MustParseAddr("192.0.2.1")
	cfg.Cluster, cfg.PKI = "the test's", n.keys(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + n.Socket}})
	check(t, err)
	if !n.Unguarded {
		cfg.Revision = func() int64 {
			got, err := client.Get(context.Background(), "any")
			if err != nil {
				return 0
			}
			return got.Header.Revision
		}
	}
	server, err := api.New(cfg)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // its parent's end ends it too
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	go func() {
		select {
		case <-server.Ready():
			fmt.Println("serving") //nolint:forbidigo // to the parent
		case <-ctx.Done():
		}
	}()
	check(t, server.Run(ctx))
}

func (n *node) keys(t *testing.T) *pki.Bundle {
	t.Helper()
	keys, err := pki.Ensure(n.Keys, pki.Params{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		ClusterDomain: "cluster.local", APIPort: 6443,
	}, time.Now())
	check(t, err)
	return keys
}

// startNodes starts a cluster of two nodes whose clocks differ and whose changes
// take some time to the other.
func startNodes(t *testing.T) []*node {
	t.Helper()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // upstream says something of each broken connection
	dir := t.TempDir()
	nodes := []*node{}
	for i := range 2 {
		n := &node{Number: crdt.NodeNumber(i + 1), Port: int(loopback.Addr(t).Port()), Keys: filepath.Join(dir, "pki"), Unguarded: os.Getenv(noGuardEnv) != ""}
		n.open(t, filepath.Join(dir, fmt.Sprint("store", i)), time.Duration(i)*time.Second)
		nodes = append(nodes, n)
	}
	nodes[0].keys(t)
	run(t, "replication to 2", func(ctx context.Context) error { return replicate(ctx, nodes[0], nodes[1]) })
	run(t, "replication to 1", func(ctx context.Context) error { return replicate(ctx, nodes[1], nodes[0]) })
	for _, n := range nodes { // the second finds the cluster made
		n.serve(t)
	}
	return nodes
}

func (n *node) open(t *testing.T, dir string, ahead time.Duration) {
	t.Helper()
	cfg := store.DefaultConfig(dir)
	cfg.Node, cfg.Hold = n.Number, n.hold
	cfg.Now = func() time.Time { return time.Now().Add(ahead) }
	var err error
	n.store, err = store.Open(cfg)
	check(t, err)
	t.Cleanup(func() { check(t, n.store.Close()) })
	run(t, "store", n.store.Run)
	serve := etcd.DefaultConfig()
	n.Socket = dir + ".sock"
	serve.Socket, serve.Store, serve.Log = n.Socket, n.store, slog.New(slog.DiscardHandler)
	server, err := etcd.New(serve)
	check(t, err)
	run(t, "etcd API", server.Run)
	<-server.Ready()
}

// serve runs the node's API server in a process of its own.
func (n *node) serve(t *testing.T) {
	t.Helper()
	spec, err := json.Marshal(n)
	check(t, err)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^TestServeNode$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), serveEnv+"="+string(spec))
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		check(t, stdin.Close())
		_, _ = io.Copy(io.Discard, stdout)
		check(t, cmd.Wait())
	})
	first := make([]byte, len("serving"))
	if _, err := io.ReadFull(stdout, first); err != nil || string(first) != "serving" {
		t.Fatalf("API server of node %d: %q %v", n.Number, first, err)
	}
	n.admin, err = clientcmd.BuildConfigFromFlags("", n.keys(t).Admin)
	check(t, err)
	n.admin.Host, n.admin.QPS = fmt.Sprintf("https://127.0.0.1:%d", n.Port), -1
	n.client, err = kubernetes.NewForConfig(n.admin)
	check(t, err)
}

// replicate carries changes from one node to the other, late.
func replicate(ctx context.Context, from, to *node) error {
	tail, err := from.store.Tail(ctx, to.store.Vector())
	if err != nil {
		return err
	}
	defer tail.Close()
	for {
		frame, err := tail.Next(ctx)
		if err == nil {
			late := time.NewTimer(rand.N(40 * time.Millisecond)) //nolint:gosec // any will do
			select {
			case <-late.C:
			case <-ctx.Done():
			}
			err = to.store.Apply(ctx, frame.Records, frame.Vector)
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			from.release()
			return nil
		}
		if err != nil {
			return err
		}
		from.settle(frame.Revision)
	}
}

// release answers all writes: there is nobody to wait for any more.
func (n *node) release() { n.settle(1<<63 - 1) }

// relay is the address of a client's server: a relay to one node, which can be
// moved to another. All that is open breaks then, as when the node dies.
type relay struct {
	listener net.Listener
	mu       sync.Mutex
	to       *node
	open     map[net.Conn]struct{}
	moves    int
}

func startRelay(t *testing.T, to *node) *relay {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	check(t, err)
	r := &relay{listener: listener, to: to, open: map[net.Conn]struct{}{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		r.move(nil)
		all.Wait()
	})
	return r
}

// config is that of a client of the relay.
func (r *relay) config() *rest.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	config := rest.CopyConfig(r.to.admin)
	config.Host = "https://" + r.listener.Addr().String()
	return config
}

func (r *relay) carry(client net.Conn) {
	defer client.Close() //nolint:errcheck // broken off
	r.mu.Lock()
	to := r.to
	r.mu.Unlock()
	if to == nil {
		return
	}
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp4", fmt.Sprintf("127.0.0.1:%d", to.Port))
	if err != nil {
		return
	}
	defer server.Close() //nolint:errcheck // broken off
	if !r.keep(to, client, server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
	both.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, client)
	delete(r.open, server)
}

// keep notes connections to be broken by the next move, unless that has been.
func (r *relay) keep(to *node, conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != to {
		return false
	}
	for _, c := range conns {
		r.open[c] = struct{}{}
	}
	return true
}

// move breaks all connections and leads new ones to another node.
func (r *relay) move(to *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = to
	r.moves++
	for c := range r.open {
		_ = c.Close()
	}
	clear(r.open)
}
