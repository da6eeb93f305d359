package net

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWatchRoutes holds that the agent hears of a gateway address that somebody
// took. It runs once more in a process of its own, whose every thread is in a
// network namespace of its own.
func TestWatchRoutes(t *testing.T) {
	const inside = "MOOT_TEST_IN_NAMESPACE"
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWatchRoutes$", "-test.v") //nolint:gosec // this very binary
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("in the namespace: %v\n%s", err, out)
		}
		return
	}
	cluster, gateway := []netip.Prefix{cidr("10.42.0.0/16")}, []netip.Addr{addr("10.42.0.1")}
	ctx, cancel := context.WithCancel(t.Context())
	pokes, ended := make(chan struct{}, 1), make(chan error, 1)
	agent := &Agent{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	go func() {
		ended <- agent.watchRoutes(ctx, func() {
			select {
			case pokes <- struct{}{}:
			default:
			}
		})
	}()
	deadline := time.After(10 * time.Second)
	for heard := false; !heard; {
		for _, want := range [][]netip.Addr{gateway, nil} { // set, then taken
			if err := setGateway(cluster, want); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-pokes:
			heard = true
		case <-time.After(50 * time.Millisecond): // it may not listen yet
		case <-deadline:
			t.Fatal("nothing heard")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
