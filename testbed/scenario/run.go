package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mootkube/moot/testbed"
	"github.com/mootkube/moot/testbed/leak"
)

// Options say what cluster to make.
type Options struct {
	// Bin is the directory of the binaries, absolute.
	Bin string
	// Nodes is how many.
	Nodes int
	// Out takes what is measured, a line each.
	Out io.Writer
	// Progress takes what the testbed does. Nil discards it.
	Progress io.Writer
	// Patience bounds each wait for a condition.
	Patience time.Duration
	// Logs is the directory that gets the daemons' whole logs after an error.
	// Empty keeps none.
	Logs string
	// BPF compares the eBPF objects of the whole kernel before and after, too.
	// Nothing else may load any in the meantime.
	BPF bool
}

// Run makes a cluster, hands it to do, and takes it down. What is left of it
// on the machine is an error. On an error of do the daemons' last words go to
// Progress, and all of their logs to the directory of that name.
func Run(ctx context.Context, o Options, do func(context.Context, *Bed) error) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts and cgroups; run it with sudo")
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	before, err := leak.Take()
	if err != nil {
		return err
	}
	var bpf leak.Snapshot
	if o.BPF {
		if bpf, err = leak.BPF(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "moot-scenario-")
	if err != nil {
		return err
	}
	release, err := guard(o.Bin, dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer release()
	cfg := testbed.DefaultConfig(filepath.Join(dir, "bed"), o.Bin)
	cfg.Init = filepath.Join(o.Bin, "testbed") // this program may be much larger
	cfg.Progress = o.Progress
	c, err := testbed.New(cfg)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	b := newBed(c, o)
	defer func() {
		if err != nil {
			err = errors.Join(err, b.lastWords(o.Progress))
		}
		err = errors.Join(err, end(c, dir, before))
		if o.BPF && err == nil {
			err = b.sameBPF(context.WithoutCancel(ctx), bpf)
		}
	}()
	if err := b.up(ctx); err != nil {
		return err
	}
	return do(ctx, b)
}

// guard starts a process that outlives this one, if only for a moment: when
// we are gone without a word it takes the cluster down.
func guard(bin, dir string) (release func(), err error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", `read -r word; [ "$word" = done ] || { "$1" --dir "$2/bed" down; rm -rf "$2"; }`,
		"sh", filepath.Join(bin, "testbed"), dir)
	cmd.Stdin = ours
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	return func() {
		_, _ = theirs.WriteString("done\n")
		_ = cmd.Wait()
		_ = theirs.Close()
	}, ours.Close()
}

// end takes the cluster down, twice as down may be repeated, and looks for
// what it left.
func end(c *testbed.Cluster, dir string, before leak.Snapshot) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for range 2 {
		if err := c.Down(ctx); err != nil {
			return fmt.Errorf("take the cluster down: %w", err)
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

// lastWords writes the end of each daemon's log, and keeps the whole of it
// where logs are kept.
func (b *Bed) lastWords(w io.Writer) error {
	for _, node := range b.Nodes {
		var log strings.Builder
		if err := b.Logs(context.Background(), node, &log, false); err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(log.String(), "\n"), "\n")
		_, _ = fmt.Fprintf(w, "the log of %s ends:\n  %s\n", node, strings.Join(lines[max(0, len(lines)-40):], "\n  "))
		if b.opts.Logs == "" {
			continue
		}
		if err := os.MkdirAll(b.opts.Logs, 0o755); err != nil {
			return fmt.Errorf("keep the logs: %w", err)
		}
		if err := os.WriteFile(filepath.Join(b.opts.Logs, node+".log"), []byte(log.String()), 0o600); err != nil {
			return fmt.Errorf("keep the log of %s: %w", node, err)
		}
	}
	return nil
}
