package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNoCluster says that the directory holds no cluster.
var ErrNoCluster = errors.New("no cluster here: run testbed up first")

const stateVersion = 2

// state is all a command needs to know about a cluster, as kept in
// <dir>/state.json. What a field names is created after the field is on disk
// and removed before the field goes.
type state struct {
	Version    int               `json:"version"`
	ID         string            `json:"id"`     // names our cgroups
	BootID     string            `json:"bootID"` // of the machine
	Bin        string            `json:"bin"`    // first on PATH inside nodes
	Daemon     []string          `json:"daemon"` // argv prefix of the daemon
	Subnet     netip.Prefix      `json:"subnet"`
	Standalone bool              `json:"standalone,omitempty"` // the daemons do not know each other
	Sysctls    map[string]string `json:"sysctls"`              // as they were before up
	Cgroups    []string          `json:"cgroups,omitempty"`    // controllers the root did not delegate then
	Nodes      []*nodeState      `json:"nodes"`
	Registries []*registryState  `json:"registries,omitempty"`
	Machines   []*machineState   `json:"machines,omitempty"`
	Cuts       []cutPair         `json:"cuts,omitempty"`
}

// nodeState is one node. Init is zero while the node is without power.
type nodeState struct {
	Name   string     `json:"name"`
	Addr   netip.Addr `json:"addr"`
	Init   process    `json:"init"`
	Args   []string   `json:"args,omitempty"` // of the daemon
	Member bool       `json:"member"`         // has been ready once: need not join again
	Paused bool       `json:"paused,omitempty"`
	Link   linkState  `json:"link,omitempty"`
	Boots  int        `json:"boots"`
}

// linkState is what a node has of a network.
type linkState string

const (
	linkUpState   linkState = ""          // cable in, address and default route set
	linkUnplugged linkState = "unplugged" // no carrier; the address stays, as a fixed one does
	linkBare      linkState = "bare"      // no carrier, no address, no route: a machine that asked and got none
)

// registryState is one image registry, a machine of its own on the bridge.
type registryState struct {
	Name     string     `json:"name"`
	Addr     netip.Addr `json:"addr"`
	Process  process    `json:"process"`
	Username string     `json:"username"`
	Password string     `json:"password"`
}

// machineState is one machine on the bridge that is no node.
type machineState struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"addr"`
	Process process    `json:"process"`
}

// cutPair is one pair of nodes that do not hear each other, A < B; or, one
// way, B that does not hear A.
type cutPair struct {
	A      string `json:"a"`
	B      string `json:"b"`
	OneWay bool   `json:"oneWay,omitempty"`
}

func (s *state) node(name string) (*nodeState, error) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	names := make([]string, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	return nil, fmt.Errorf("no node %q: the cluster has %v", name, names)
}

func (s *state) valid() error {
	if s.Version != stateVersion {
		return fmt.Errorf("state file has version %d, this testbed reads %d", s.Version, stateVersion)
	}
	if s.ID == "" || s.BootID == "" || !s.Subnet.IsValid() {
		return errors.New("state file is incomplete")
	}
	for _, c := range s.Cuts {
		if c.A >= c.B && !c.OneWay {
			return fmt.Errorf("state file has the cut %s|%s out of order", c.A, c.B)
		}
	}
	return nil
}

// addCut records the pair once, whichever way round unless it is one way.
func (s *state) addCut(a, b string, oneWay bool) {
	p := cutPair{A: min(a, b), B: max(a, b)}
	if oneWay {
		p = cutPair{A: a, B: b, OneWay: true}
	}
	if !slices.Contains(s.Cuts, p) {
		s.Cuts = append(s.Cuts, p)
	}
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elem...)...)
}

func (c *Cluster) load() (*state, error) {
	b, err := os.ReadFile(c.path("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoCluster
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read state %s: %w", c.path("state.json"), err)
	}
	if err := s.valid(); err != nil {
		return nil, fmt.Errorf("read state %s: %w", c.path("state.json"), err)
	}
	return s, nil
}

func (c *Cluster) save(s *state) error {
	if err := s.valid(); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := writeFileAtomic(c.path("state.json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// writeFileAtomic replaces path so that a reader, or a crash, sees the old
// bytes or the new ones and nothing between.
func writeFileAtomic(path string, b []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// lockFile takes an exclusive lock and returns its release. The lock goes
// with the process, however that ends. With remove the file goes as well, so
// that nothing is left behind.
func lockFile(path string) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The holder before us may have removed the file: then this lock
		// guards nothing.
		var held, named unix.Stat_t
		if unix.Fstat(int(f.Fd()), &held) == nil && unix.Stat(path, &named) == nil && held.Ino == named.Ino {
			return &fileLock{f: f}, nil
		}
		_ = f.Close()
	}
}

type fileLock struct{ f *os.File }

func (l *fileLock) release() { _ = l.f.Close() }

func (l *fileLock) removeAndRelease() error {
	err := os.Remove(l.f.Name())
	l.release()
	return err
}

// locked runs fn with the state while no other command can change it. fn
// saves what it changes.
func (c *Cluster) locked(fn func(*state) error) error {
	if _, err := os.Stat(c.path("state.json")); errors.Is(err, fs.ErrNotExist) {
		return ErrNoCluster
	}
	l, err := lockFile(c.path("lock"))
	if err != nil {
		return err
	}
	defer l.release()
	s, err := c.load()
	if err != nil {
		return err
	}
	return fn(s)
}
