package testbed

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// joining makes the stand-ins of a cluster join each other.
func joining(cfg *Config) {
	cfg.Standalone, cfg.Port, cfg.CheckWhole = false, 7000, nil
	cfg.TokenCommand = []string{cfg.Daemon[0], "stand-in-token"}
}

// The first node founds the cluster, the others join it once; a member that
// starts again is not told to join.
func TestJoin(t *testing.T) {
	c := up(t, 3, joining)
	for _, n := range []string{"n1", "n2", "n3"} {
		if got := mustOn(t, c, n, "cat "+standInToken); got != "founded-by-n1" {
			t.Errorf("%s is of the cluster %q", n, got)
		}
	}
	if err := c.Crash(t.Context(), "n1", "n3"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	// A second up waits for what the first had started.
	if err := c.Start(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Up(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	// An empty disk makes a new machine, which joins; the founder as well.
	for _, n := range []string{"n1", "n2"} {
		mustOn(t, c, n, "touch /var/old")
		if err := c.Wipe(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		mustOn(t, c, n, "test ! -e /var/old")
		if got := mustOn(t, c, n, "cat "+standInToken); got != "founded-by-n1" {
			t.Errorf("%s is of the cluster %q after it was wiped", n, got)
		}
	}
	// One that never got in, and nobody to let it in.
	s, err := c.load()
	if err != nil {
		t.Fatal(err)
	}
	s.Nodes[1].Member = false
	if err := c.save(s); err != nil {
		t.Fatal(err)
	}
	if err := c.Crash(t.Context(), "n1", "n2", "n3"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context(), "n2"); err == nil || !strings.Contains(err.Error(), "no member is on") {
		t.Errorf("start of a stranger alone: %v", err)
	}
}

// A node that cannot join fails up with its own last words, and the others
// do not wait for it.
func TestUpOfAFailingJoiner(t *testing.T) {
	c := newCluster(t, func(cfg *Config) {
		joining(cfg)
		cfg.TokenCommand = []string{"sh", "-c", "echo not-the-token"}
	})
	err := c.Up(t.Context(), 3)
	if err == nil || !strings.Contains(err.Error(), "403 Forbidden") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("up: %v", err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// heard waits until a node has written down a word, and reports all of them.
func heard(t *testing.T, c *Cluster, node, word string) []string {
	t.Helper()
	var words []string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		words = strings.Fields(mustOn(t, c, node, "cat /run/heard 2>/dev/null || true"))
		if slices.Contains(words, word) {
			return words
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%s has not heard %q: %v", node, word, words)
		}
	}
}

func say(t *testing.T, c *Cluster, from, to, word string) {
	t.Helper()
	conn, err := c.Dial(t.Context(), from, "udp", to+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, word); err != nil {
		t.Fatal(err)
	}
}

// Cut one way, n2 does not hear n1, and n1 hears n2; the cut outlives neither
// heal nor is it wider than asked.
func TestCutOneWayAndUnplug(t *testing.T) {
	c := up(t, 3, nil)
	t.Run("one way", func(t *testing.T) { testOneWay(t, c) })
	t.Run("open connection", func(t *testing.T) { testOpenConnection(t, c) })
	t.Run("unplug", func(t *testing.T) { testUnplug(t, c) })
}

func testOneWay(t *testing.T, c *Cluster) {
	const n1, n2 = "10.77.0.11", "10.77.0.12"
	if err := c.CutOneWay(t.Context(), []string{"n1"}, []string{"n2"}); err != nil {
		t.Fatal(err)
	}
	say(t, c, "n1", n2, "lost")
	say(t, c, "n2", n1, "kept")
	heard(t, c, "n1", "kept")
	if !reaches(t, c, "n1", "n3") || reaches(t, c, "n1", "n2") {
		t.Error("the cut is not what was asked for")
	}
	// After this datagram, by the bridge's order, the lost one would be there.
	say(t, c, "", n2, "last")
	if words := heard(t, c, "n2", "last"); slices.Contains(words, "lost") {
		t.Errorf("n2 heard %v", words)
	}
	if err := c.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	say(t, c, "n1", n2, "healed")
	heard(t, c, "n2", "healed")
}

// An open connection is cut as well, and goes on after heal.
func testOpenConnection(t *testing.T, c *Cluster) {
	conn, err := c.Dial(t.Context(), "n1", "tcp", "10.77.0.12:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := c.Cut(t.Context(), []string{"n1"}, []string{"n2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// An answer would be there before that of another node to a later question.
	if !reaches(t, c, "n3", "n2") {
		t.Fatal("n3 does not reach n2")
	}
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); len(b) > 0 || err == nil {
		t.Errorf("an answer across the cut: %q, %v", b, err)
	}
	if err := c.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(b), "n2") {
		t.Errorf("after heal: %q, %v", b, err)
	}
}

func testUnplug(t *testing.T, c *Cluster) {
	net := func() string {
		return mustOn(t, c, "n1", "cat /sys/class/net/eth0/carrier; ip -o -4 addr show dev eth0 | wc -l; ip route show default | wc -l")
	}
	if got := net(); got != "1\n1\n1" {
		t.Fatalf("carrier, addresses and default routes before: %q", got)
	}
	if err := c.Unplug(t.Context(), "n1", false); err != nil {
		t.Fatal(err)
	}
	if got := net(); got != "0\n1\n1" {
		t.Errorf("unplugged: %q", got)
	}
	if reaches(t, c, "n2", "n1") || reaches(t, c, "n1", "n2") {
		t.Error("an unplugged node is reached or reaches")
	}
	for bare, want := range map[bool]string{false: "0\n1\n0", true: "0\n0\n0"} {
		if err := c.Crash(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if err := c.Unplug(t.Context(), "n1", bare); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if got := net(); got != want {
			t.Errorf("booted unplugged, bare %t: %q, want %q", bare, got, want)
		}
		if err := c.Plug(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if got := net(); got != "1\n1\n1" {
			t.Errorf("plugged in again: %q", got)
		}
		if !reaches(t, c, "n2", "n1") || !reaches(t, c, "n1", "n2") {
			t.Error("plugged in again, it is not reached or does not reach")
		}
	}
}
