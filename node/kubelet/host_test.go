package kubelet

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mootkube/moot/testbed/loopback"
)

func TestCgroupChecks(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	v1 := func(point, options string) string {
		return "30 25 0:27 / " + point + " rw,nosuid - cgroup cgroup " + options + "\n"
	}
	var hybrid string
	for _, c := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids"} {
		hybrid += v1(filepath.Join(dir, c), "rw,"+c)
		if err := os.MkdirAll(filepath.Join(dir, c, "moot"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	hybrid += "31 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"

	for name, tc := range map[string]struct{ mountinfo, root, want string }{
		"hybrid":                {hybrid, "", ""},
		"hybrid, own root":      {hybrid, "/moot", ""},
		"hybrid, root missing":  {hybrid, "/gone", "does not exist"},
		"no memory controller":  {strings.ReplaceAll(hybrid, "rw,memory", "rw,blkio"), "", "not mounted: memory"},
		"nothing mounted":       {"garbage\n", "", "cpu, cpuacct, cpuset, memory"},
		"pure v2, root missing": {"31 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/no/such/cgroup", "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			found := checkCgroups(write("mountinfo", tc.mountinfo), tc.root)
			err := Fatal(found)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("found %v, want %q", err, tc.want)
			}
		})
	}
	write("v2/cgroup.controllers", "cpuset cpu io memory pids\n")
	if found := checkUnified(filepath.Join(dir, "v2")); len(found) != 0 {
		t.Errorf("pure v2: %v", found)
	}
	write("v2/cgroup.controllers", "io pids\n")
	if err := Fatal(checkUnified(filepath.Join(dir, "v2"))); err == nil || !strings.Contains(err.Error(), "cpu, cpuset, memory") {
		t.Errorf("pure v2 without controllers: %v", err)
	}
}

func TestPortCheck(t *testing.T) {
	taken := loopback.Addr(t)
	l, err := net.Listen("tcp", taken.String()) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	if err := Fatal(checkPort(taken)); err == nil || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("a busy port: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if found := checkPort(taken); len(found) != 0 {
		t.Errorf("a free port: %v", found)
	}
}

func TestStateFileCheck(t *testing.T) {
	dir := t.TempDir()
	if found := checkStateFiles(dir); len(found) != 0 {
		t.Fatalf("first start: %v", found)
	}
	good, cut := filepath.Join(dir, "cpu_manager_state"), filepath.Join(dir, "allocated_pods_state")
	if err := errors.Join(os.WriteFile(good, []byte(`{"policyName":"none"}`), 0o600), os.WriteFile(cut, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	found := checkStateFiles(dir)
	if len(found) != 1 || !strings.Contains(found[0].What, cut) {
		t.Fatalf("found %v, want the empty file alone", found)
	}
}

func TestDirCheck(t *testing.T) {
	cfg := testConfig(t)
	if found := checkDirs(&cfg); len(found) != 0 {
		t.Fatalf("found %v", found)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.PodLogsDir = filepath.Join(file, "logs")
	cfg.RootDir = filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	err := Fatal(checkDirs(&cfg))
	if err == nil || !strings.Contains(err.Error(), cfg.PodLogsDir) || !strings.Contains(err.Error(), "too deep") {
		t.Fatalf("found %v, want a directory that cannot be made and one that is too deep", err)
	}
	if left, err := filepath.Glob(filepath.Join(cfg.RootDir, ".moot-probe-*")); err != nil || len(left) > 0 {
		t.Errorf("probes left behind: %v, %v", left, err)
	}
}

func TestKmsg(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kmsg")
	if _, err := ensureKmsg(path); err != nil { // made: the device, or a stand-in
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("still missing: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	present := filepath.Join(dir, "present")
	if err := os.WriteFile(present, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if seen, err := ensureKmsg(present); err != nil || !seen {
		t.Errorf("a log that is there: %v, %v", seen, err)
	}
	if _, err := ensureKmsg(filepath.Join(present, "x")); err == nil {
		t.Error("a path that cannot be is taken")
	}
}

func TestStartLog(t *testing.T) {
	var out bytes.Buffer
	var noted []string
	var starting atomic.Bool
	starting.Store(true)
	stopped := make(chan struct{})
	log := slog.New(startLog{
		Handler:  slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}),
		note:     func(reason string) { noted = append(noted, reason) },
		starting: &starting,
		stopped:  stopped,
	})
	log.Info("Starting")
	log.Warn("A warning")
	log.Error("Skipping pod synchronization", "err", errors.New("not yet"))
	log.With("node", "n1").Error("Failed to start ContainerManager", "err", errors.New("no\n such cgroup"))
	log.WithGroup("g").Error(strings.Repeat("é", 1000))
	if len(noted) != 2 || noted[0] != "Failed to start ContainerManager: no such cgroup" || len(noted[1]) > 600 {
		t.Fatalf("noted %q", noted)
	}
	starting.Store(false)
	log.Error("Skipping pod synchronization", "err", errors.New("the runtime is down"))
	if len(noted) != 2 {
		t.Errorf("noted after the start: %q", noted[2:])
	}
	close(stopped)
	log.Error("Failed cleaning pods")
	for text, want := range map[string]bool{
		"Failed cleaning pods": false, "Starting": false, "A warning": true, "not yet": false, "ContainerManager": true, "the runtime is down": true,
	} {
		if got := strings.Contains(out.String(), text); got != want {
			t.Errorf("%q passed on: %v, want %v", text, got, want)
		}
	}
}

func TestSeveredClient(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	var cut atomic.Bool
	client := &http.Client{Transport: severable{next: http.DefaultTransport, cut: &cut}}
	get := func() error {
		resp, err := client.Post(server.URL, "text/plain", io.NopCloser(strings.NewReader("x"))) //nolint:noctx // a test
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	cut.Store(true)
	if err := get(); !errors.Is(err, errSevered) {
		t.Fatalf("request after the cut: %v", err)
	}
}

func TestReadySince(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 500, time.UTC)
	node := func(status corev1.ConditionStatus, at time.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(at)},
			{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(at)},
		}}}
	}
	for name, tc := range map[string]struct {
		node *corev1.Node
		want bool
	}{
		"ready now":               {node(corev1.ConditionTrue, start.Add(time.Second)), true},
		"ready, seconds cut":      {node(corev1.ConditionTrue, start.Truncate(time.Second)), true},
		"ready before this start": {node(corev1.ConditionTrue, start.Add(-time.Minute)), false},
		"not ready":               {node(corev1.ConditionFalse, start.Add(time.Second)), false},
		"no condition":            {&corev1.Node{}, false},
	} {
		if got := readySince(tc.node, start); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
