// Package e2e tries the promises of a single node against the built
// binaries, from outside: bin/testbed starts a cluster that all tests share,
// kubectl inside the node does the rest. Tests that stop the daemon or the
// node run first, one by one; the others run side by side, each in a
// namespace of its own. Tests wait for conditions, never for time.
//
// When the suite ends the cluster is taken down, whatever happened, and what
// is left of it on the machine fails the suite.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed/leak"
)

// Images of the web app, the same but for the tag.
const (
	image  = "moot.example/web:v1"
	image2 = "moot.example/web:v2"
)

const node = "n1"

func TestMain(m *testing.M) {
	code, err := suite(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func suite(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("needs root: run sudo make e2e")
	}
	for _, name := range []string{"moot", "testbed"} {
		if _, err := os.Stat(binary(name)); err != nil {
			return 1, fmt.Errorf("no bin/%s: run make build first", name)
		}
	}
	before, err := leak.Take()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "moot-e2e-")
	if err != nil {
		return 1, err
	}
	ctx := context.Background()
	release, err := guard(dir)
	if err != nil {
		return 1, err
	}
	defer release()
	defer func() {
		if derr := end(dir, before); derr != nil && err == nil {
			code, err = 1, derr
		}
	}()
	began := time.Now()
	if out, err := bed(ctx, dir, "", "up", "--nodes", "1"); err != nil {
		return 1, fmt.Errorf("%w\n%s", err, out)
	}
	fmt.Printf("e2e: the node was Ready after %.1f s\n", time.Since(began).Seconds())
	if err := loadImages(ctx, dir); err != nil {
		return 1, err
	}
	if err := os.Setenv("MOOT_E2E_DIR", dir); err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 {
		logs, _ := bed(ctx, dir, "", "logs", node)
		lines := strings.Split(logs, "\n")
		fmt.Printf("e2e: the daemon's log ends:\n%s\n", strings.Join(lines[max(0, len(lines)-80):], "\n"))
	}
	return code, nil
}

// guard starts a process that outlives this one, if only for a moment: when
// we are gone without a word, by ctrl-C, a time limit or a panic, it takes the
// cluster down.
func guard(dir string) (release func(), err error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", `read -r word; [ "$word" = done ] || { "$1" --dir "$2/bed" down; rm -rf "$2"; }`,
		"sh", binary("testbed"), dir)
	cmd.Stdin = ours
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_, _ = theirs.WriteString("done\n")
		_ = cmd.Wait()
	}, ours.Close()
}

// end takes the cluster down and looks for what it left.
func end(dir string, before leak.Snapshot) error {
	ctx := context.Background()
	for range 2 { // down may be repeated
		if out, err := bed(ctx, dir, "", "down"); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	after, err := leak.Take()
	if err != nil {
		return err
	}
	if left := after.Since(before); len(left) > 0 {
		return fmt.Errorf("left behind on this machine:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

func loadImages(ctx context.Context, dir string) error {
	web := binary("testbed-web")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", web, "github.com/mootkube/moot/testbed/web")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the web app: %w: %s", err, out)
	}
	for _, name := range []string{image, image2} {
		tar := filepath.Join(dir, "web.tar")
		for _, args := range [][]string{
			{"image", "build", "--name", name, "--path", "/web", "--link", "bin/tar", web, tar},
			{"image", "load", tar},
		} {
			if out, err := bed(ctx, dir, "", args...); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
		}
	}
	return nil
}

func binary(name string) string {
	wd, err := os.Getwd()
	if err != nil {
		return name
	}
	return filepath.Join(wd, "..", "..", "bin", name)
}

// bed runs bin/testbed on a cluster and returns what it prints.
func bed(ctx context.Context, dir, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary("testbed"), append([]string{"--dir", filepath.Join(dir, "bed")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("testbed %s: %w", strings.Join(args, " "), err)
	}
	return out.String(), nil
}
