package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config says where a cluster lives and what runs on its nodes.
type Config struct {
	// Dir holds everything of the cluster: state, disks, logs. Required,
	// absolute.
	Dir string
	// Bin is the directory of the binaries under test, first on PATH inside
	// nodes. Required for Up, absolute.
	Bin string
	// Init is the program that becomes the nodes' init; it calls Reexec first
	// thing. Empty: the program that runs.
	Init string
	// Daemon is the command that runs on each node, before its flags.
	Daemon []string
	// DaemonArgs are added to the daemon's flags on every node.
	DaemonArgs []string
	// Standalone lets a cluster of several nodes consist of daemons that do
	// not know each other. Otherwise the others join the first.
	Standalone bool
	// Port is where a daemon takes those who join.
	Port uint16
	// TokenCommand, run on a member, prints a token to join by.
	TokenCommand []string
	// CheckNode, after the daemon has said it is ready, decides whether its
	// node serves. Nil takes the daemon's word.
	CheckNode func(ctx context.Context, c *Cluster, node string) (bool, error)
	// CheckWhole, after all have joined, decides whether they are one
	// cluster. Nil takes the nodes' word.
	CheckWhole func(ctx context.Context, c *Cluster, nodes []string) (bool, error)
	// ReadyTimeout bounds the wait for one node.
	ReadyTimeout time.Duration
	// Subnet of the bridge, a /24.
	Subnet netip.Prefix
	// Progress takes lines for a human. Nil discards them.
	Progress io.Writer
}

// DefaultConfig is a cluster of moot in dir with the binaries in bin.
func DefaultConfig(dir, bin string) Config {
	return Config{
		Dir:          dir,
		Bin:          bin,
		Daemon:       []string{"moot", "up"},
		Port:         7443,
		TokenCommand: []string{"moot", "token", "create"},
		CheckNode:    NodeReady,
		CheckWhole:   OneCluster,
		ReadyTimeout: 5 * time.Minute,
		Subnet:       netip.MustParsePrefix("10.77.0.0/24"),
	}
}

// Validate reports the first thing wrong with c.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Dir):
		return fmt.Errorf("testbed: directory %q is not absolute", c.Dir)
	case filepath.Clean(c.Dir) == "/":
		return errors.New("testbed: the directory is /")
	case !filepath.IsAbs(c.Bin):
		return fmt.Errorf("testbed: binary directory %q is not absolute", c.Bin)
	case len(c.Daemon) == 0:
		return errors.New("testbed: no daemon command")
	case !c.Subnet.Addr().Is4() || c.Subnet.Bits() != 24 || c.Subnet.Masked() != c.Subnet:
		return fmt.Errorf("testbed: subnet %s is not an IPv4 /24", c.Subnet)
	case !c.Standalone && (c.Port == 0 || len(c.TokenCommand) == 0):
		return errors.New("testbed: no port or token to join by")
	case c.ReadyTimeout <= 0:
		return errors.New("testbed: no time to become ready")
	}
	return nil
}

// Cluster is a handle on the cluster in a directory, which need not exist.
// Its methods may be called from several processes at once: those that
// change something take turns.
type Cluster struct {
	cfg  Config
	tell sync.Mutex // guards Progress: nodes are waited for side by side
}

// New returns a handle; it touches nothing.
func New(cfg Config) (*Cluster, error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Cluster{cfg: cfg}, nil
}

func (c *Cluster) progress(format string, args ...any) {
	c.tell.Lock()
	defer c.tell.Unlock()
	_, _ = fmt.Fprintf(c.cfg.Progress, format+"\n", args...)
}

// Up creates a cluster of n nodes and returns when all are ready: the first,
// then the others, which join it side by side. On an existing cluster of n
// nodes it starts what an earlier Up had not come to, and waits for all. When
// a node does not become ready the cluster stays, to be looked at, until Down.
func (c *Cluster) Up(ctx context.Context, n int) error {
	if os.Geteuid() != 0 {
		return errors.New("testbed needs root: namespaces, mounts and cgroups; run it with sudo")
	}
	if n < 1 || n > maxNodes {
		return fmt.Errorf("%d nodes: 1 to %d are possible", n, maxNodes)
	}
	if err := c.checkDaemon(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("create cluster: %w", err)
	}
	s, err := c.create(ctx, n)
	if err != nil {
		return err
	}
	return c.startFirstTime(ctx, s)
}

// checkDaemon finds before anything is created whether there is a daemon.
func (c *Cluster) checkDaemon() error {
	daemon := c.cfg.Daemon[0]
	if !filepath.IsAbs(daemon) {
		daemon = filepath.Join(c.cfg.Bin, daemon)
	}
	if st, err := os.Stat(daemon); err != nil || st.Mode()&0o111 == 0 {
		return fmt.Errorf("no binary %s: run make build first", daemon)
	}
	return nil
}

// create makes the bridge and boots the nodes, without their daemons, or
// adopts a cluster that matches.
func (c *Cluster) create(ctx context.Context, n int) (*state, error) {
	l, err := lockFile(c.path("lock"))
	if err != nil {
		return nil, err
	}
	defer l.release()
	if s, err := c.load(); !errors.Is(err, ErrNoCluster) {
		if err != nil {
			return nil, err
		}
		return s, c.adopt(s, n)
	}
	s, err := c.newState()
	if err != nil {
		return nil, err
	}
	if err := c.save(s); err != nil {
		return nil, err
	}
	// The record of the sysctls is shared by all clusters of the machine; ours
	// is in the state file before anything can change them.
	if s.Sysctls, s.Cgroups, err = saveSysctls(s.ID, c.cfg.Dir, s.BootID); err != nil {
		return nil, err
	}
	if err := c.save(s); err != nil {
		return nil, err
	}
	if err := raiseInotify(); err != nil {
		return nil, err
	}
	if err := c.createBridge(s.Subnet); err != nil {
		return nil, err
	}
	for i := range n {
		s.Nodes = append(s.Nodes, &nodeState{
			Name: fmt.Sprintf("n%d", i+1),
			Addr: host(s.Subnet, firstNode+i),
			Args: c.cfg.DaemonArgs,
		})
	}
	for _, node := range s.Nodes {
		if err := c.boot(ctx, s, node); err != nil {
			return nil, err
		}
		c.progress("%s is on", node.Name)
	}
	return s, nil
}

func (c *Cluster) newState() (*state, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("name cluster: %w", err)
	}
	return &state{
		Version: stateVersion, ID: hex.EncodeToString(id), BootID: boot,
		Bin: c.cfg.Bin, Daemon: c.cfg.Daemon, Subnet: c.cfg.Subnet, Standalone: c.cfg.Standalone,
	}, nil
}

// adopt accepts a cluster that is what Up would have made.
func (c *Cluster) adopt(s *state, n int) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if boot != s.BootID {
		return fmt.Errorf("the cluster in %s did not survive a reboot of this machine: run testbed down first", c.cfg.Dir)
	}
	if len(s.Nodes) != n {
		return fmt.Errorf("%s has a cluster of %d nodes: run testbed down first, or use another --dir", c.cfg.Dir, len(s.Nodes))
	}
	for _, node := range s.Nodes {
		if !node.Init.alive() {
			return fmt.Errorf("%s of the cluster in %s is off: run testbed start %s, or testbed down first", node.Name, c.cfg.Dir, node.Name)
		}
	}
	c.progress("the nodes of %s are on already", c.cfg.Dir)
	return nil
}

// Down ends the cluster and removes all of it: processes, namespaces,
// mounts, cgroups, disks, logs; and puts the machine's sysctls back. It needs
// the state file alone, and may be repeated; without a cluster it does
// nothing.
func (c *Cluster) Down(ctx context.Context) error {
	if _, err := os.Stat(c.path("state.json")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	l, err := lockFile(c.path("lock"))
	if err != nil {
		return err
	}
	s, err := c.load()
	if err == nil {
		err = c.destroy(ctx, s)
	}
	if errors.Is(err, ErrNoCluster) {
		err = nil // another Down was first
	}
	if err != nil {
		l.release()
		return err
	}
	if err := l.removeAndRelease(); err != nil {
		return err
	}
	_ = os.Remove(c.cfg.Dir) // stays when it holds what is not ours
	return nil
}

func (c *Cluster) destroy(ctx context.Context, s *state) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if boot == s.BootID {
		for _, n := range s.Nodes {
			if err := c.powerOff(ctx, s, n); err != nil {
				return err
			}
		}
		for _, r := range s.Registries {
			if err := r.Process.killAndWait(ctx, nil); err != nil {
				return err
			}
		}
		for _, m := range s.Machines {
			if err := m.Process.killAndWait(ctx, nil); err != nil {
				return err
			}
		}
		if err := removeCgroups(ctx, s.ID, ""); err != nil {
			return err
		}
		if err := c.removeBridge(); err != nil {
			return err
		}
		if err := restoreSysctls(s.ID, s.BootID, s.Sysctls, s.Cgroups); err != nil {
			return err
		}
	}
	if err := refuseMounts(c.cfg.Dir); err != nil {
		return err
	}
	for _, name := range []string{"nodes", "registries", "bridge.netns", "state.json"} {
		if err := os.RemoveAll(c.path(name)); err != nil {
			return fmt.Errorf("remove cluster: %w", err)
		}
	}
	return nil
}

// refuseMounts keeps the removal of files out of file systems that are
// mounted below a directory.
func refuseMounts(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("remove %s: %s is mounted, by no command of testbed: unmount it first", dir, f[4])
		}
	}
	return nil
}
