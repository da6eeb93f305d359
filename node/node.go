// Package node makes one program of the parts: it checks the host, lays out
// the directories, starts the parts in order, tells how the node is, and stops
// them in the opposite order.
//
// Data flow: settings come in as a [Config]; each part gets the few values it
// needs, as paths, addresses and sockets; the parts speak to each other over
// the same sockets that other programs would use (etcd API, Kubernetes API,
// CRI), so nothing here carries their data.
//
// Goroutines: one for each part, owned by [Node.Run]; when it returns they
// have ended, or were reported as left behind.
//
// It refuses to change a host that fails [Check], to share a data directory
// with another daemon, and to touch a running pod when it stops.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/node/net/proxy"
	"github.com/mootkube/moot/node/pki"
)

// Progress is one line of a node's start.
type Progress struct {
	Ready bool          // the whole node is up: Name is the node's name
	Name  string        // the part that became ready
	Took  time.Duration // from that part's start
	Notes []string      // what a user should know
}

// restartWindow is how long the others wait for a daemon that was stopped.
const restartWindow = time.Minute

// Node is one node, not yet started.
type Node struct {
	cfg      Config
	log      *slog.Logger
	progress func(Progress)
	notifier Notifier
	board    board
	control  control
	founds   bool // this start begins a cluster
	enters   bool // this start makes the node a member: it begins a cluster or joined one

	memberMu sync.Mutex // guards the membership once parts run

	leaving  atomic.Bool   // this node is on its way out of its cluster, or was taken out
	left     chan struct{} // closed when this node has left its cluster
	leftOnce sync.Once

	services *proxy.Proxy // set before parts run

	apiOnly     chan struct{} // closed when the start goes on without a kubelet
	apiOnlyOnce sync.Once
}

// New checks the settings. It starts nothing and touches nothing.
func New(cfg Config, log *slog.Logger, progress func(Progress), notifier Notifier) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, progress: progress, notifier: notifier, apiOnly: make(chan struct{}), left: make(chan struct{})}
	n.board.status = Status{
		Node: cfg.NodeName, Address: cfg.NodeIP.String(), Versions: ReadVersions(),
		Started: time.Now(), Reason: "starting",
	}
	return n, nil
}

// Run is the node's life: it returns nil when ctx ended and the parts have
// stopped, or the first failure. It may be called once in a process.
func (n *Node) Run(ctx context.Context) error {
	unlock, err := n.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	member, err := n.enterCluster(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	keys, err := pki.Ensure(n.cfg.pkiDir(), n.pkiParams(), time.Now())
	if err != nil {
		return fmt.Errorf("prepare keys: %w", err)
	}
	redirectUpstreamLogs(n.log)
	replica, err := n.openReplica(member, keys)
	if err != nil {
		return err
	}
	s := newStack(n.log, n.partReady)
	defer s.stop()
	defer n.notify("STOPPING=1")
	defer n.announceRestart(replica.agent)
	defer n.handOver()
	defer n.control.open(nil)
	if err := n.startAll(ctx, s, keys, replica, member); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	n.announce(ctx, replica)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-n.left:
			cancel()
		case <-ctx.Done():
		}
	}()
	return s.wait(ctx)
}

// announceRestart tells the others that the daemon will be back: nothing moves
// meanwhile, and another leads at once.
func (n *Node) announceRestart(agent *gossip.Agent) {
	if n.leaving.Load() {
		return // it will not
	}
	if err := agent.Restarting(restartWindow); err != nil {
		n.log.Warn("the members were not told of the restart", "err", err)
	}
}

// handOver leads this node's clients of the API and of DNS to other nodes while
// this one still answers.
func (n *Node) handOver() {
	if n.services == nil {
		return
	}
	if err := n.services.HandOver(); err != nil {
		n.log.Warn("clients on this node have no API and no DNS until the daemon is back", "err", err)
	}
}

// prepare checks the host, takes the data directory's lock and makes the
// directories.
func (n *Node) prepare() (unlock func(), err error) {
	for _, dir := range []string{n.cfg.DataDir, n.cfg.StateDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make directory: %w; run it with sudo, or choose another directory", err)
		}
	}
	// The lock comes first: a second daemon should hear of the first, not of
	// the ports it holds.
	unlock, err = lockDir(n.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	findings := checkHost(n.cfg)
	if err := Failed(findings); err != nil {
		unlock()
		return nil, err
	}
	for _, f := range findings {
		if f.Severity == Warn {
			n.log.Warn("host check", "name", f.Name, "detail", f.Detail, "hint", f.Hint)
		}
	}
	return unlock, nil
}

// lockDir makes sure that one daemon at a time works on a data directory. The
// kernel drops the lock with the process, however it ends.
func lockDir(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits an int
		closeErr := file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another moot; stop it, or choose another --data-dir", dir)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), closeErr)
	}
	return func() { _ = file.Close() }, nil
}

func (n *Node) partReady(name string, took time.Duration) {
	n.board.update(func(s *Status) {
		s.Parts = append(s.Parts, PartStatus{Name: name, Seconds: took.Seconds()})
	})
	n.notify("STATUS=" + name + " ready")
	n.progress(Progress{Name: name, Took: took})
}

// announce tells everyone who asked that the node is up, and who begins a
// cluster how other machines join it.
func (n *Node) announce(ctx context.Context, r *replica) {
	degraded := n.board.start()
	notes := []string{
		"kubeconfig " + n.cfg.KubeconfigPath(),
		"try        sudo moot kubectl get pods -A",
	}
	if n.founds {
		if command, err := n.joinCommand(ctx, r); err != nil {
			n.log.Warn("no join token could be made", "err", err)
		} else {
			notes = append(notes, "add a node  "+command)
		}
		notes = append(notes, "NOTE       this machine began a cluster of its own; to be a member of another instead, remove "+n.cfg.DataDir+" and start it with --join")
	}
	for _, d := range degraded {
		notes = append(notes, "WITHOUT    "+d)
	}
	n.progress(Progress{Ready: true, Name: n.cfg.NodeName, Notes: notes})
	n.notify("READY=1", "STATUS=ready")
}

func (n *Node) notify(assignments ...string) {
	if err := n.notifier.Send(assignments...); err != nil {
		n.log.Warn("systemd was not told", "err", err)
	}
}

func (n *Node) pkiParams() pki.Params {
	return pki.Params{
		NodeName:        n.cfg.NodeName,
		NodeIPs:         n.cfg.nodeIPs(),
		ServiceIP:       n.cfg.serviceIPs(1)[0],
		ClusterDomain:   n.cfg.ClusterDomain,
		ExtraSANs:       slices.Concat(n.cfg.TLSSANs, n.cfg.secondServiceIP()),
		APIPort:         n.cfg.APIPort,
		AdminKubeconfig: n.cfg.KubeconfigPath(),
	}
}
