package testbed

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is the nodes' init, and on the nodes it stands in for the
// daemon.
func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) > 1 && os.Args[1] == "stand-in" {
		fmt.Fprintln(os.Stderr, standIn(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// standIn does what a daemon does as far as testbed can tell: it takes
// flags, keeps data, has a child that outlives it, serves HTTP and says when
// it is ready.
func standIn(args []string) error {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	if flags["--fail"] != "" {
		return fmt.Errorf("stand-in: %s", flags["--fail"])
	}
	if err := os.MkdirAll(flags["--data-dir"], 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(flags["--data-dir"], "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("start\n"); err != nil {
		return err
	}
	if _, err := os.Stat("/run/pod.pid"); err != nil {
		pod := exec.Command("/bin/sleep", "infinity")
		pod.SysProcAttr = &unix.SysProcAttr{Setsid: true}
		if err := pod.Start(); err != nil {
			return err
		}
		if err := os.WriteFile("/run/pod.pid", fmt.Append(nil, pod.Process.Pid), 0o644); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", flags["--node-ip"]+":7000")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "stand-in on", flags["--node-name"], "says hello")
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("STATUS=serving\nREADY=1\n")); err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, flags["--node-name"])
	}))
}

// newCluster is a handle whose nodes run the stand-in. What is in it ends
// with the test.
func newCluster(t *testing.T, change func(*Config)) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig(filepath.Join(t.TempDir(), "bed"), filepath.Dir(exe))
	cfg.Daemon = []string{filepath.Base(exe), "stand-in"}
	cfg.CheckNode = nil
	cfg.Standalone = true
	cfg.Progress = t.Output()
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended.
		if err := c.Down(t.Context()); err != nil && !strings.Contains(err.Error(), "canceled") {
			t.Error(err)
		}
	})
	return c
}
