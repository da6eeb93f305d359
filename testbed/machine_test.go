package testbed

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A machine reaches nodes and is seen under its address, has processes of its
// own, and ends with the cluster, what it runs as well. Its network's name is
// returned.
func testMachine(t *testing.T, c *Cluster) string {
	m, err := c.Machine(t.Context(), "outside")
	if err != nil {
		t.Fatal(err)
	}
	line := func(argv ...string) (string, int) {
		var out strings.Builder
		code, err := m.Exec(t.Context(), Command{Argv: argv, Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String()), code
	}
	if out, code := line("curl", "-sS", "--noproxy", "*", "--max-time", "2", "http://10.77.0.12:7000/"); code != 0 || out != "n2" {
		t.Errorf("asked from the machine: exit status %d, %q", code, out)
	}
	n1, err := c.Addr("n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Route(netip.MustParsePrefix("192.0.2.0/24"), n1); err != nil {
		t.Fatal(err)
	}
	if out, _ := line("ip", "route", "get", "192.0.2.1"); !strings.Contains(out, "via 10.77.0.11") || !strings.Contains(out, "src "+m.Addr.String()) {
		t.Errorf("the way by a node: %q", out)
	}
	conn, err := m.Dial(t.Context(), "tcp", "10.77.0.11:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got := conn.LocalAddr().String(); !strings.HasPrefix(got, m.Addr.String()+":") {
		t.Errorf("dialled from %s", got)
	}
	// It outlives the shell; Down has to end it.
	if out, code := line("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $$"); code != 0 || len(out) > 3 {
		t.Errorf("pid %s, exit status %d", out, code)
	}
	again, err := c.Machine(t.Context(), "outside")
	if err != nil || again.process != m.process {
		t.Errorf("asked for again: %+v, %v", again, err)
	}
	network, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.process.PID))
	if err != nil {
		t.Fatal(err)
	}
	if len(inNetwork(t, network)) < 2 {
		t.Error("the orphan is not there")
	}
	return network
}

// inNetwork lists the processes in a network namespace.
func inNetwork(t *testing.T, network string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == network {
			pids = append(pids, l)
		}
	}
	return pids
}
