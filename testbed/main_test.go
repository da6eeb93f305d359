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
	if len(os.Args) > 1 && os.Args[1] == "stand-in-token" {
		b, err := os.ReadFile(standInToken)
		_, _ = os.Stdout.Write(b)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "stand-in" {
		fmt.Fprintln(os.Stderr, standIn(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const standInToken = "/var/lib/moot/token"

// standIn does what a daemon does as far as testbed can tell: it takes
// flags, keeps data, has a child that outlives it, serves HTTP, writes down
// what it hears over UDP, founds a cluster or joins one by its token, and says
// when it is ready.
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
	if err := standInJoin(flags["--node-name"]); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", ":7000")
	if err != nil {
		return err
	}
	go hear(udp)
	fmt.Fprintln(os.Stderr, "stand-in on", flags["--node-name"], "says hello")
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("STATUS=serving\nREADY=1\n")); err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.URL.Query().Get("token"); token != "" {
			if want, err := os.ReadFile(standInToken); err != nil || string(want) != token {
				http.Error(w, "wrong token", http.StatusForbidden)
				return
			}
		}
		_, _ = fmt.Fprint(w, flags["--node-name"])
	}))
}

func standInJoin(name string) error {
	join, token := os.Getenv("MOOT_JOIN"), os.Getenv("MOOT_TOKEN")
	if _, err := os.Stat(standInToken); err == nil {
		if join != "" {
			return fmt.Errorf("stand-in: told to join %s, and a member already", join)
		}
		return nil
	}
	if join == "" {
		return os.WriteFile(standInToken, []byte("founded-by-"+name), 0o600)
	}
	r, err := http.Get("http://" + join + "/?token=" + token)
	if err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("stand-in: join %s: %s", join, r.Status)
	}
	return os.WriteFile(standInToken, []byte(token), 0o600)
}

// hear writes datagrams down until the process ends.
func hear(udp net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, _, err := udp.ReadFrom(buf)
		if err != nil {
			return
		}
		f, err := os.OpenFile("/run/heard", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return
		}
		_, _ = f.Write(append(buf[:n:n], '\n'))
		_ = f.Close()
	}
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
