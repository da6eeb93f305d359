package runtime

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests here need root, runc and the built helper binaries. Each node test
// runs in namespaces of its own: the test binary starts itself again under
// unshare, and the end of that process takes every mount, interface, shim and
// container with it. Daemons are further processes of the same binary, as
// containerd starts once in a process and must survive being killed.
const (
	envInside = "MOOT_RUNTIME_TEST_INSIDE" // set: this process is inside, value is the cgroup
	envDaemon = "MOOT_RUNTIME_TEST_DAEMON" // set: this process is a daemon, value is its Config
)

func TestMain(m *testing.M) {
	if cfg := os.Getenv(envDaemon); cfg != "" {
		os.Exit(daemonMain(cfg))
	}
	os.Exit(m.Run())
}

// daemonMain runs a runtime until SIGTERM and says "ready" on standard output.
func daemonMain(encoded string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(encoded), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	rt, err := New(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-rt.Ready()
		_, _ = os.Stdout.WriteString("ready\n")
	}()
	if err := rt.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// inside runs the calling test again in namespaces of its own and reports its
// outcome; in that second run it returns the node to test with.
func inside(t *testing.T) *testNode {
	t.Helper()
	if cgroup := os.Getenv(envInside); cgroup != "" {
		return newTestNode(t, cgroup)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and containers")
	}
	for _, tool := range []string{"runc", "unshare", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s in PATH", tool)
		}
	}
	if _, err := embeddedFile(shimAsset); err != nil {
		t.Skip(err)
	}
	cgroup := fmt.Sprintf("/moot-runtime-test-%d", os.Getpid())
	t.Cleanup(func() { removeCgroups(t, cgroup) })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// The shell is process 1 of the namespace, and reaps.
	cmd := exec.CommandContext(ctx, "unshare",
		"--fork", "--pid", "--kill-child", "--mount", "--net", "--ipc", "--uts", "--mount-proc",
		"sh", "-c", `"$0" "$@"; exit $?`,
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), envInside+"="+cgroup)
	// Killed itself, this process takes the namespaces with it. The kernel
	// means the thread when it says parent.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatal("the inner test did not run")
	}
	return nil
}

// removeCgroups deletes the test's cgroups of every hierarchy, deepest first.
func removeCgroups(t *testing.T, cgroup string) {
	t.Helper()
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + cgroup)
	if err != nil {
		t.Error(err)
	}
	roots = append(roots, "/sys/fs/cgroup"+cgroup)
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		for _, dir := range slices.Backward(dirs) {
			// The kernel takes a moment to let go of processes that ended.
			eventually(t, "remove "+dir, func() error {
				if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			})
		}
	}
}

// eventually retries until there is no error, or fails the test.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// testNode is a node whose daemon can be started and ended at will.
type testNode struct {
	t      *testing.T
	cfg    Config
	cgroup string
	daemon *exec.Cmd
}

func newTestNode(t *testing.T, cgroup string) *testNode {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, dir := range []string{"/run", "/var/lib/cni"} {
		must(t, os.MkdirAll(dir, 0o755))
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	must(t, exec.Command("ip", "link", "set", "lo", "up").Run())
	dir := t.TempDir()
	n := &testNode{t: t, cgroup: cgroup, cfg: Config{
		DataDir:      filepath.Join(dir, "data"),
		StateDir:     "/run/moot",
		Version:      "test",
		RegistryDirs: []string{filepath.Join(dir, "certs.d")},
		CNIConfDir:   filepath.Join(dir, "net.d"),
		CNIBinDir:    filepath.Join(dir, "cni"),
	}}
	must(t, os.MkdirAll(n.cfg.CNIConfDir, 0o755))
	must(t, os.WriteFile(filepath.Join(n.cfg.CNIConfDir, "10-moot.conflist"), []byte(`{
		"cniVersion": "1.1.0", "name": "moot", "plugins": [{
			"type": "moot", "subnets": ["10.42.7.0/24"], "masquerade": true,
			"clusterCIDRs": ["10.42.0.0/16"], "dataDir": "/run/moot/cni",
			"capabilities": {"portMappings": true}}]}`), 0o600))
	t.Cleanup(func() {
		if n.daemon != nil {
			n.end(syscall.SIGKILL)
		}
		n.powerLoss() // so that the temporary directory can be removed
	})
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start starts the daemon and waits until it is ready.
func (n *testNode) start() {
	n.t.Helper()
	cfg, err := json.Marshal(n.cfg)
	must(n.t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envDaemon+"="+string(cfg))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(n.t, err)
	begin := time.Now()
	must(n.t, cmd.Start())
	n.daemon = cmd
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		n.t.Fatalf("daemon is not ready: %q %v", line, err)
	}
	n.t.Logf("daemon ready after %v, %d KiB anonymous", time.Since(begin).Round(time.Millisecond), anonymous(n.t, cmd.Process.Pid))
}

// end ends the daemon with a signal and waits for it.
func (n *testNode) end(sig syscall.Signal) {
	n.t.Helper()
	must(n.t, n.daemon.Process.Signal(sig))
	err := n.daemon.Wait()
	n.daemon = nil
	if sig == syscall.SIGTERM && err != nil {
		n.t.Errorf("daemon stopped with %v", err)
	}
}

// powerLoss ends every other process of the node and empties what a reboot
// empties.
func (n *testNode) powerLoss() {
	n.t.Helper()
	for _, pid := range processes(n.t) {
		if pid != 1 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	eventually(n.t, "wait for processes to end", func() error {
		for _, pid := range processes(n.t) {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && pid != 1 && pid != os.Getpid() {
				return fmt.Errorf("%s is still there", exe)
			}
		}
		return nil
	})
	for _, point := range mountsUnder(n.t, n.cfg.StateDir, n.cfg.DataDir) {
		must(n.t, unix.Unmount(point, unix.MNT_DETACH))
	}
	must(n.t, os.RemoveAll(n.cfg.StateDir))
}

func processes(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// shims lists the shim processes.
func shims(t *testing.T) []int {
	t.Helper()
	var out []int
	for _, pid := range processes(t) {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); filepath.Base(exe) == shimName {
			out = append(out, pid)
		}
	}
	return out
}

// mountsUnder lists mount points in directories, the deepest first.
func mountsUnder(t *testing.T, dirs ...string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var out []string
	for line := range strings.Lines(string(data)) {
		point := strings.Fields(line)[4]
		for _, dir := range dirs {
			if strings.HasPrefix(point, dir+"/") {
				out = append([]string{point}, out...)
			}
		}
	}
	return out
}

// anonymous is the memory of a process that is its own, in KiB.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			must(t, err)
			return kib
		}
	}
	t.Fatalf("no RssAnon for process %d", pid)
	return 0
}
