package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"github.com/mootkube/moot/node/net/proxy"
)

// roleNode is the argument by which this program is a node.
const roleNode = "node"

// nodeSettings say what a node is to be.
type nodeSettings struct {
	Side       string
	Services   int
	Bound      time.Duration // for the start
	Dir        string        // for files, empty
	CgroupRoot string
	Cgroup     string // that this process is in
}

// The kinds of questions.
const (
	oneByOne = "one by one" // connect Count times
	atOnce   = "at once"    // connect with Clients at once for Period
	change   = "change"     // move endpoints Count times, each Wait after the last was seen
)

// question is what a node is asked to measure.
type question struct {
	Kind    string
	Pod     bool // from a pod, not the node itself
	Count   int
	Clients int
	Period  time.Duration
	Wait    time.Duration
}

// answer is what it measured, or why it could not.
type answer struct {
	Times []time.Duration
	Took  time.Duration
	Err   string
}

// node is this process when it is one.
type node struct {
	nodeSettings
	net *network
	api *api
}

// runNode starts a node, says how that went, and answers questions until there
// are no more.
func runNode(ctx context.Context, raw string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	klog.SetSlogLogger(warnings())
	n := &node{}
	if err := json.Unmarshal([]byte(raw), &n.nodeSettings); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	out := json.NewEncoder(os.Stdout)
	var first answer
	took, err := n.start(ctx)
	if first.Took = took; err != nil {
		first.Err = err.Error()
	}
	if err := out.Encode(first); err != nil {
		return err
	}
	for in := json.NewDecoder(os.Stdin); ; {
		var q question
		if err := in.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(n.answer(ctx, q)); err != nil {
			return err
		}
	}
}

func (n *node) answer(ctx context.Context, q question) answer {
	var a answer
	var err error
	begin := time.Now()
	switch q.Kind {
	case oneByOne:
		a.Times, err = n.connectOneByOne(q)
	case atOnce:
		a.Times, err = n.connectAtOnce(q)
	case change:
		a.Times, err = n.moveEndpoints(ctx, q)
	default:
		err = fmt.Errorf("unknown question %q", q.Kind)
	}
	a.Took = time.Since(begin)
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

// start makes the network and runs the proxy in it; it returns how long the proxy
// took until all Services were served.
func (n *node) start(ctx context.Context) (time.Duration, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	// What the proxy takes for all processes of the machine are those of this node.
	if err := unix.Mount(n.Cgroup, n.CgroupRoot, "", unix.MS_BIND, ""); err != nil {
		return 0, fmt.Errorf("bind cgroup: %w", err)
	}
	var err error
	if n.net, err = buildNetwork(); err != nil {
		return 0, err
	}
	if err := within(n.net.server, listen); err != nil {
		return 0, err
	}
	if n.Side == direct {
		return 0, nil
	}
	cfg, err := n.serveAPI(ctx)
	if err != nil {
		return 0, err
	}
	p, err := proxy.New(cfg)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.Bound, fmt.Errorf("not all Services were served after %v", n.Bound))
	ready, ended := make(chan struct{}), make(chan error, 1)
	begin := time.Now()
	go func() { ended <- p.Run(context.WithoutCancel(ctx), nil, func(proxy.Serving) { close(ready) }) }()
	defer cancel()
	select {
	case <-ready:
	case err := <-ended:
		return 0, err
	case <-ctx.Done():
		return time.Since(begin), context.Cause(ctx)
	}
	for _, i := range []int{0, n.Services / 2, n.Services - 1} {
		if err := n.await(ctx, i, nil); err != nil {
			return time.Since(begin), err
		}
	}
	return time.Since(begin), nil
}

// serveAPI starts the API server and returns how to run a proxy on it.
func (n *node) serveAPI(ctx context.Context) (proxy.Config, error) {
	cfg := proxy.DefaultConfig()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return cfg, err
	}
	n.api = newAPI(n.Services)
	server := &http.Server{Handler: n.api, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // until this process ends
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["bench"] = &clientcmdapi.Cluster{Server: "http://" + l.Addr().String()}
	kubeconfig.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench"}
	kubeconfig.CurrentContext = "bench"
	cfg.Kubeconfig = filepath.Join(n.Dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, cfg.Kubeconfig); err != nil {
		return cfg, err
	}
	cfg.Pins = filepath.Join(n.Dir, "bpf", "moot")
	if err := os.Mkdir(filepath.Dir(cfg.Pins), 0o700); err != nil {
		return cfg, err
	}
	cfg.NodeName, cfg.NodeIPs = nodeName, []netip.Addr{netip.MustParseAddr(nodeAddr)}
	cfg.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix(podCIDR)}
	cfg.Mode = proxy.Mode(n.Side)
	cfg.Log = warnings()
	return cfg, nil
}

func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
