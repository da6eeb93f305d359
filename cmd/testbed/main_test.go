package main

import (
	"bytes"
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

// build makes the command, and beside it a daemon that never gets ready.
func build(t *testing.T) (testbed, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin := t.TempDir()
	testbed = filepath.Join(bin, "testbed")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", testbed, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(bin, "idle"), []byte("#!/bin/sh\nexec sleep infinity\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "bed")
	t.Cleanup(func() {
		if out, err := exec.Command(testbed, "--dir", dir, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return testbed, dir
}

// waitStatus calls status until it says text.
func waitStatus(t *testing.T, testbed, dir, text string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		out, _ := exec.CommandContext(t.Context(), testbed, "status", "--dir", dir).CombinedOutput()
		if strings.Contains(string(out), text) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("status does not say %q: %s", text, out)
		}
	}
}

// Whenever up is killed, down leaves nothing.
func TestDownAfterUpWasKilled(t *testing.T) {
	testbed, dir := build(t)
	before, err := leak.Take()
	if err != nil {
		t.Fatal(err)
	}
	for delay := time.Duration(0); delay <= 300*time.Millisecond; delay += 15 * time.Millisecond {
		up := exec.CommandContext(t.Context(), testbed, "up", "--dir", dir, "--nodes", "2", "--standalone", "--daemon", "idle")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		// A moment in its course, not a wait for anything.
		<-time.After(delay)
		if err := up.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = up.Wait()
		if out, err := exec.CommandContext(t.Context(), testbed, "down", "--dir", dir).CombinedOutput(); err != nil {
			t.Fatalf("down after %s: %v: %s", delay, err, out)
		}
		after, err := leak.Take()
		if err != nil {
			t.Fatal(err)
		}
		if l := after.Since(before); len(l) > 0 {
			t.Fatalf("after %s left behind:\n%s", delay, strings.Join(l, "\n"))
		}
	}
}

// exec is a faithful pipe, and --dir may stand anywhere before the dashes.
func TestExec(t *testing.T) {
	testbed, dir := build(t)
	up := exec.CommandContext(t.Context(), testbed, "up", "--dir", dir, "--daemon", "idle")
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, testbed, dir, "starting")
	for _, args := range [][]string{
		{"--dir", dir, "exec", "n1"}, {"exec", "--dir=" + dir, "n1"}, {"exec", "n1", "--dir", dir},
	} {
		cmd := exec.CommandContext(t.Context(), testbed, append(args, "--", "sh", "-c", `cat; echo err "$@" >&2; exit 7`, "sh", "--dir", "mine")...)
		cmd.Stdin = strings.NewReader("in\x00put")
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 7 || out.String() != "in\x00put" || errOut.String() != "err --dir mine\n" {
			t.Errorf("%v: %v, %q, %q", args, err, out.String(), errOut.String())
		}
	}
	// A signal reaches the command, whose status comes back.
	cmd := exec.CommandContext(t.Context(), testbed, "exec", "--dir", dir, "n1", "--", "sh", "-c", `trap 'echo bye; exit 9' TERM; echo on; while :; do sleep 0.05; done`)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var word string
	if _, err := fmt.Fscan(pipe, &word); err != nil || word != "on" {
		t.Fatalf("%q, %v", word, err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(pipe, &word); err != nil || word != "bye" {
		t.Errorf("after SIGTERM: %q, %v", word, err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("after SIGTERM: %v", err)
	}
	for _, args := range [][]string{{"exec", "n1", "true"}, {"exec", "n1", "--"}, {"exec", "--", "true"}} {
		if out, err := exec.CommandContext(t.Context(), testbed, append([]string{"--dir", dir}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), "usage: testbed exec NODE -- COMMAND") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if err := up.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		t.Error("up of a daemon that is never ready ends well")
	}
}
