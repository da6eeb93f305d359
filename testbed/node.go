package testbed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Boot of a node: its cgroups, its init in new namespaces, its link. The
// init waits for its configuration until it is on record.
func (c *Cluster) boot(ctx context.Context, s *state, n *nodeState) error {
	dir := c.path("nodes", n.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	if err := createCgroups(s.ID, n.Name); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	in, out, err := c.spawnInit(s, n, dir)
	if err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	defer func() { _, _ = in.Close(), out.Close() }()
	n.Paused = false
	n.Boots++
	if err := c.save(s); err != nil {
		return err
	}
	if err := moveProcess(s.ID, n.Name, leafInit, n.Init.PID); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		// The node's root is an inner node from here on.
		if h.V2 {
			if err := delegate(h.node(s.ID, n.Name)); err != nil {
				return fmt.Errorf("boot %s: %w", n.Name, err)
			}
		}
	}
	if err := c.plug(n.Name, n.Addr, s.Subnet, n.Init.PID, n.Link); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	if err := json.NewEncoder(in).Encode(bootConfig{
		Name: n.Name, Dir: dir, Bin: s.Bin, MachineID: machineID(s.ID, n.Name),
		Files: c.etcFiles(s), Cgroups: hs,
	}); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	if err := in.Close(); err != nil {
		return fmt.Errorf("boot %s: %w", n.Name, err)
	}
	_ = out.SetReadDeadline(time.Now().Add(time.Minute))
	if answer, err := io.ReadAll(out); err != nil || string(answer) != "ok" {
		said, _ := os.ReadFile(filepath.Join(dir, "init.log"))
		return errors.Join(fmt.Errorf("boot %s: init did not come up: %s", n.Name, strings.TrimSpace(string(said))), err, ctx.Err())
	}
	return nil
}

// spawnInit starts the init of a node in new namespaces and in the root of
// its cgroups, which thereby is the root of its cgroup namespace, and returns
// the pipes to and from it.
func (c *Cluster) spawnInit(s *state, n *nodeState, dir string) (in, out *os.File, err error) {
	logFile, err := os.OpenFile(filepath.Join(dir, "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = logFile.Close() }()
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = inR.Close() }()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, inW.Close())
	}
	defer func() { _ = outW.Close() }()
	pid, err := inThread(func() (int, error) {
		cgroupDir, err := enterThread(s.ID, n.Name, "")
		if err != nil {
			return 0, err
		}
		attr := &syscall.SysProcAttr{
			Setsid: true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS |
				unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
			Unshareflags: unix.CLONE_NEWCGROUP,
		}
		if cgroupDir != nil {
			defer func() { _ = cgroupDir.Close() }()
			attr.UseCgroupFD, attr.CgroupFD = true, int(cgroupDir.Fd())
		}
		return syscall.ForkExec(cmp.Or(c.cfg.Init, "/proc/self/exe"), []string{initName}, &syscall.ProcAttr{
			Dir:   "/",
			Env:   []string{"PATH=" + nodePath, "GOMAXPROCS=1", "GOGC=50"},
			Files: []uintptr{inR.Fd(), outW.Fd(), logFile.Fd()},
			Sys:   attr,
		})
	})
	if err == nil {
		n.Init, err = identify(pid)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start init: %w", err), inW.Close(), outR.Close())
	}
	return inW, outR, nil
}

// machineID is the node's for ever, like that of an installed system.
func machineID(cluster, node string) string {
	sum := sha256.Sum256([]byte(cluster + "/" + node))
	return hex.EncodeToString(sum[:16])
}

// etcFiles are the files in /etc that name the machines of the cluster. The
// resolver is the bridge, where nobody answers: names from outside fail fast.
func (c *Cluster) etcFiles(s *state) map[string]string {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	for _, n := range s.Nodes {
		_, _ = fmt.Fprintf(&hosts, "%s %s\n", n.Addr, n.Name)
	}
	for i := range maxRegistries {
		_, _ = fmt.Fprintf(&hosts, "%s %s\n", host(s.Subnet, firstRegistry+i), registryHost(i))
	}
	return map[string]string{
		"hosts":       hosts.String(),
		"resolv.conf": fmt.Sprintf("nameserver %s\noptions timeout:1 attempts:1\n", host(s.Subnet, 1)),
	}
}

// startDaemon runs the daemon on a node that is on, with env added to its
// environment.
func (c *Cluster) startDaemon(s *state, n *nodeState, env ...string) error {
	logFile, err := os.OpenFile(c.daemonLog(n.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer func() { _ = logFile.Close() }()
	argv := slices.Concat(s.Daemon, []string{"--data-dir", "/var/lib/moot", "--node-name", n.Name})
	if n.Link != linkBare { // which has no such address
		argv = append(argv, "--node-ip", n.Addr.String())
	}
	argv = append(argv, n.Args...)
	_, err = ask(n.Init, request{Op: opStart, Argv: argv, Env: slices.Concat(nodeEnv(), env)}, logFile)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	return nil
}

func (c *Cluster) daemonLog(node string) string { return c.path("nodes", node, "moot.log") }

const (
	machinePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	nodePath    = binDir + ":" + machinePath
	kubeconfig  = "/var/lib/moot/kubeconfig"
)

// nodeEnv is the environment on a node: nothing of the caller's, lest a
// proxy or a kubeconfig of the machine leak in.
func nodeEnv() []string {
	return []string{"PATH=" + nodePath, "HOME=/root", "LANG=C.UTF-8", "KUBECACHEDIR=/var/cache/kubectl"}
}

// WaitReady returns when the daemon of the node has said that it is ready
// and the node check agrees; or with an error when the daemon ends first.
func (c *Cluster) WaitReady(ctx context.Context, node string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	n, err := s.node(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.ReadyTimeout,
		fmt.Errorf("not ready after %s", c.cfg.ReadyTimeout))
	defer cancel()
	said := ""
	err = poll(ctx, 50*time.Millisecond, "wait for "+node, func() (bool, error) {
		st, err := ask(n.Init, request{Op: opStatus}, nil)
		if st.Text != said {
			said = st.Text
			c.progress("%s: %s", node, said)
		}
		switch {
		case err != nil:
			return false, err
		case st.PID == 0:
			return false, fmt.Errorf("its daemon has ended: %s", st.Exit)
		case !st.Ready || c.cfg.CheckNode == nil:
			return st.Ready, nil
		}
		return c.cfg.CheckNode(ctx, c, node)
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("wait for %s: %w", node, cause)
		}
		return fmt.Errorf("%w; its last words, from %s:\n%s", err, c.daemonLog(node), tail(c.daemonLog(node), 20))
	}
	if n.Member {
		return nil
	}
	return c.withNode(node, func(s *state, n *nodeState) error {
		n.Member = true
		return c.save(s)
	})
}

// NodeReady asks the node's own API whether the node is Ready.
func NodeReady(ctx context.Context, c *Cluster, node string) (bool, error) {
	var out strings.Builder
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	code, err := c.Exec(ctx, node, Command{
		Argv: []string{"moot", "kubectl", "get", "node", node, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status}`},
		Stdout: &out,
	})
	if _, missing := errors.AsType[*exec.Error](err); missing {
		return false, err
	}
	return code == 0 && out.String() == "True", nil
}

// tail returns the last lines of a file.
func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
