package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed/leak"
)

// on runs a shell line on a node and returns its output.
func on(t *testing.T, c *Cluster, node, line string) (string, int) {
	t.Helper()
	var out strings.Builder
	code, err := c.Exec(t.Context(), node, Command{Argv: []string{"sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%s: %s: %v", node, line, err)
	}
	return strings.TrimSpace(out.String()), code
}

func mustOn(t *testing.T, c *Cluster, node, line string) string {
	t.Helper()
	out, code := on(t, c, node, line)
	if code != 0 {
		t.Fatalf("%s: %s: exit status %d: %s", node, line, code, out)
	}
	return out
}

// reaches reports whether the stand-in of one node answers another.
func reaches(t *testing.T, c *Cluster, from, to string) bool {
	t.Helper()
	s, err := c.load()
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.node(to)
	if err != nil {
		t.Fatal(err)
	}
	out, code := on(t, c, from, fmt.Sprintf("curl -sS --noproxy '*' --max-time 2 http://%s:7000/", n.Addr))
	return code == 0 && out == to
}

func up(t *testing.T, n int, change func(*Config)) *Cluster {
	t.Helper()
	c := newCluster(t, change)
	if err := c.Up(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return c
}

func status(t *testing.T, c *Cluster, node string) NodeStatus {
	t.Helper()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return n
		}
	}
	t.Fatalf("no node %s in %v", node, st)
	return NodeStatus{}
}

// A whole life of a cluster of three, then nothing of it is left.
func TestLifeAndNothingLeft(t *testing.T) {
	c := newCluster(t, nil)
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Up(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	t.Run("isolation", func(t *testing.T) { testIsolation(t, c) })
	t.Run("exec", func(t *testing.T) { testExec(t, c) })
	var network string
	t.Run("machine", func(t *testing.T) { network = testMachine(t, c) })
	t.Run("cut", func(t *testing.T) { testCut(t, c) })
	t.Run("kill", func(t *testing.T) { testKill(t, c) })
	t.Run("pause", func(t *testing.T) { testPause(t, c) })
	t.Run("crash", func(t *testing.T) { testCrash(t, c) })
	t.Run("crash while paused", func(t *testing.T) {
		if err := c.Pause(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if err := c.Crash(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("second up", func(t *testing.T) {
		if err := c.Up(t.Context(), 3); err == nil || !strings.Contains(err.Error(), "n1") {
			t.Errorf("up with n1 off: %v, want an error that names it", err)
		}
	})
	if err := os.WriteFile("/proc/sys/vm/overcommit_memory", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	after, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	if left := inNetwork(t, network); len(left) > 0 {
		t.Errorf("on the machine there still run %v", left)
	}
	if l := after.Since(before); len(l) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
	}
	if _, err := os.Stat(c.cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func testIsolation(t *testing.T, c *Cluster) {
	for _, ns := range []string{"net", "mnt", "pid", "uts", "ipc", "cgroup"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{own: "the machine"}
		for _, n := range []string{"n1", "n2", "n3"} {
			l := mustOn(t, c, n, "readlink /proc/self/ns/"+ns)
			if seen[l] != "" {
				t.Errorf("%s shares its %s namespace with %s", n, ns, seen[l])
			}
			seen[l] = n
		}
	}
	if got := mustOn(t, c, "n2", "hostname; cat /etc/hostname; getent hosts n3"); got != "n2\nn2\n10.77.0.13      n3" {
		t.Errorf("identity: %q", got)
	}
	if a, b := mustOn(t, c, "n1", "cat /etc/machine-id"), mustOn(t, c, "n2", "cat /etc/machine-id"); a == b || len(a) != 32 {
		t.Errorf("machine ids %q and %q", a, b)
	}
	// A cgroup path is relative to the node's root, everywhere the exec leaf.
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	// With v2 alone mounted, v1 controllers that the kernel has stay outside.
	pure := len(hs) == 1 && hs[0].V2
	for line := range strings.Lines(mustOn(t, c, "n1", "cat /proc/self/cgroup")) {
		if pure && !strings.HasPrefix(line, "0::") {
			continue
		}
		if !strings.HasSuffix(strings.TrimSpace(line), ":/exec") {
			t.Errorf("exec runs in cgroup %q", strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(mustOn(t, c, "n1", "cat /proc/$(pgrep -f 'stand-in --data' | head -1)/cgroup")) {
		if pure && !strings.HasPrefix(line, "0::") {
			continue
		}
		if !strings.HasSuffix(strings.TrimSpace(line), ":/moot") {
			t.Errorf("the daemon runs in cgroup %q", strings.TrimSpace(line))
		}
	}
	for _, path := range []string{"/etc/moot", "/etc/cni", "/opt/cni/bin", "/var/lib/kubelet", "/var/log/pods", "/tmp/x", "/run/x", "/srv/x", "/mnt/x"} {
		mustOn(t, c, "n1", "mkdir -p "+path)
		if _, code := on(t, c, "n2", "test -e "+path); code == 0 {
			t.Errorf("n2 sees %s of n1", path)
		}
	}
	// No way out: no uplink, and a quick answer instead of silence.
	if out, code := on(t, c, "n1", "ip -o link | grep -c .; ip route get 192.0.2.1; curl -sS --max-time 10 http://192.0.2.1/ 2>&1"); code == 0 || !strings.Contains(out, "192.0.2.1 via 10.77.0.1") {
		t.Errorf("the way to the world: exit status %d, %q", code, out)
	}
	if !reaches(t, c, "n1", "n2") || !reaches(t, c, "n3", "n1") {
		t.Error("nodes do not reach each other")
	}
	if got := mustOn(t, c, "n1", "findmnt -no PROPAGATION /; findmnt -no FSTYPE /sys/fs/bpf"); got != "shared\nbpf" {
		t.Errorf("mounts: %q", got)
	}
}

func testExec(t *testing.T, c *Cluster) {
	var out, errOut strings.Builder
	code, err := c.Exec(t.Context(), "n1", Command{
		Argv: []string{"sh", "-c", `cat; echo "$KUBECONFIG" "$X" >&2; exit 42`}, Env: []string{"X=y"},
		Stdin: strings.NewReader("in and out"), Stdout: &out, Stderr: &errOut,
	})
	if err != nil || code != 42 || out.String() != "in and out" || errOut.String() != "/var/lib/moot/kubeconfig y\n" {
		t.Errorf("exec: %d, %v, %q, %q", code, err, out.String(), errOut.String())
	}
	signals := make(chan os.Signal, 1)
	signals <- unix.SIGUSR1
	if code, err := c.Exec(t.Context(), "n1", Command{Argv: []string{"sleep", "60"}, Signals: signals}); err != nil || code != 128+int(unix.SIGUSR1) {
		t.Errorf("exec with a signal: %d, %v", code, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Exec(ctx, "n1", Command{Argv: []string{"sleep", "60"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("exec with a dead context: %v", err)
	}
	if _, err := c.Exec(t.Context(), "n1", Command{Argv: []string{"no-such-command"}}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("exec of nothing: %v", err)
	}
	if _, err := c.Exec(t.Context(), "n9", Command{Argv: []string{"true"}}); err == nil {
		t.Error("exec on a node that is not there")
	}
}

func testCut(t *testing.T, c *Cluster) {
	if err := c.Cut(t.Context(), []string{"n1", "n2"}, []string{"n3"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][2]string{{"n1", "n3"}, {"n3", "n1"}, {"n2", "n3"}, {"n3", "n2"}} {
		if reaches(t, c, p[0], p[1]) {
			t.Errorf("%s reaches %s across the cut", p[0], p[1])
		}
	}
	if !reaches(t, c, "n1", "n2") || !reaches(t, c, "n2", "n1") {
		t.Error("the cut is wider than asked")
	}
	if err := c.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][2]string{{"n1", "n3"}, {"n3", "n1"}, {"n2", "n3"}, {"n3", "n2"}} {
		if !reaches(t, c, p[0], p[1]) {
			t.Errorf("%s does not reach %s after heal", p[0], p[1])
		}
	}
	if err := c.Cut(t.Context(), []string{"n1"}, []string{"n1"}); err == nil {
		t.Error("cut of a node from itself")
	}
	if err := c.Cut(t.Context(), []string{"n1"}, []string{"n7"}); err == nil {
		t.Error("cut of a node that is not there")
	}
}

func testKill(t *testing.T, c *Cluster) {
	was := status(t, c, "n1")
	pod := mustOn(t, c, "n1", "cat /run/pod.pid; cut -d' ' -f22 /proc/$(cat /run/pod.pid)/stat")
	if err := c.Kill(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if st := status(t, c, "n1"); st.Power != NodeOn || st.PID != 0 || st.Exit != "signal: killed" {
		t.Errorf("after kill: %+v", st)
	}
	if (process{PID: was.PID}).alive() {
		t.Error("the daemon lives")
	}
	if err := c.Kill(t.Context(), "n1"); err == nil {
		t.Error("second kill: no error")
	}
	if err := c.Start(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context(), "n1"); err == nil {
		t.Error("second start: no error")
	}
	if got := mustOn(t, c, "n1", "cat /run/pod.pid; cut -d' ' -f22 /proc/$(cat /run/pod.pid)/stat"); got != pod {
		t.Errorf("the pod is %q, was %q", got, pod)
	}
	if st := status(t, c, "n1"); st.PID == 0 || st.PID == was.PID || !st.Ready {
		t.Errorf("after start: %+v", st)
	}
	if got := mustOn(t, c, "n1", "wc -l </var/lib/moot/starts"); got != "2" {
		t.Errorf("the daemon has started %s times", got)
	}
}

func testPause(t *testing.T, c *Cluster) {
	if err := c.Pause(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if st := status(t, c, "n2"); st.Power != NodePaused {
		t.Errorf("paused: %+v", st)
	}
	if reaches(t, c, "n1", "n2") {
		t.Error("a paused daemon answers")
	}
	if _, err := c.Exec(t.Context(), "n2", Command{Argv: []string{"true"}}); err == nil {
		t.Error("exec on a paused node: no error")
	}
	if err := c.Resume(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, c, "n1", "n2") {
		t.Error("a resumed daemon does not answer")
	}
}

func testCrash(t *testing.T, c *Cluster) {
	s, err := c.load()
	if err != nil {
		t.Fatal(err)
	}
	boot := mustOn(t, c, "n3", "cat /proc/sys/kernel/random/boot_id; touch /etc/kept /var/kept /run/lost")
	pids, err := os.ReadFile(filepath.Join(firstHierarchy(t).node(s.ID, "n3"), "moot", "cgroup.procs"))
	if err != nil || len(strings.Fields(string(pids))) < 2 {
		t.Fatalf("processes of n3: %q, %v", pids, err)
	}
	if err := c.Cut(t.Context(), []string{"n2"}, []string{"n3"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Crash(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		if b, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && len(b) > 0 {
			t.Errorf("process %s of the crashed node lives: %q", pid, b)
		}
	}
	if _, err := os.Stat(firstHierarchy(t).node(s.ID, "n3")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup of the crashed node: %v", err)
	}
	if reaches(t, c, "n1", "n3") {
		t.Error("a crashed node answers")
	}
	if err := c.Crash(t.Context(), "n3"); err != nil {
		t.Errorf("second crash: %v", err)
	}
	if err := c.Start(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	mustOn(t, c, "n3", "test -e /etc/kept -a -e /var/kept -a ! -e /run/lost")
	if now := mustOn(t, c, "n3", "cat /proc/sys/kernel/random/boot_id"); now == boot || len(now) != 36 {
		t.Errorf("boot id %q, was %q", now, boot)
	}
	if !reaches(t, c, "n1", "n3") || reaches(t, c, "n2", "n3") {
		t.Error("the cut did not outlive the crash")
	}
	if err := c.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func firstHierarchy(t *testing.T) hierarchy {
	t.Helper()
	hs, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	return hs[0]
}

// A daemon that ends before it is ready fails up, quickly and with its words.
func TestUpOfAFailingDaemon(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.DaemonArgs = []string{"--fail", "port 6443 is busy"} })
	begin := time.Now()
	err := c.Up(t.Context(), 1)
	if err == nil || !strings.Contains(err.Error(), "port 6443 is busy") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("up: %v after %s", err, time.Since(begin))
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	c := newCluster(t, nil)
	if err := c.Up(t.Context(), 0); err == nil {
		t.Error("no nodes: no error")
	}
	for name, err := range map[string]error{
		"kill": c.Kill(t.Context(), "n1"), "start": c.Start(t.Context(), "n1"), "heal": c.Heal(t.Context()),
	} {
		if !errors.Is(err, ErrNoCluster) {
			t.Errorf("%s without a cluster: %v", name, err)
		}
	}
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("down without a cluster: %v", err)
	}
	c = newCluster(t, func(cfg *Config) { cfg.Daemon = []string{"no-such-binary"} })
	if err := c.Up(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("up without a binary: %v", err)
	}
}
