package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// side is a running node.
type side struct {
	name  string
	group string // its cgroup
	dir   string
	cmd   *exec.Cmd
	ask   *json.Encoder
	hear  *json.Decoder

	started   time.Duration // until all Services were served
	startCPU  time.Duration // processor time of it, of all processes
	unstarted error         // why it is left out
}

// start starts a node and waits until it serves all Services. A node that does
// not is returned too, with the reason in it.
func start(ctx context.Context, name string, services int, s settings) (*side, error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	v := &side{name: name}
	if v.dir, err = os.MkdirTemp("", "moot-bench-"); err != nil {
		return nil, err
	}
	if v.group, err = os.MkdirTemp(root, "moot-bench-"); err != nil {
		return nil, errors.Join(fmt.Errorf("make cgroup: %w", err), os.RemoveAll(v.dir))
	}
	if err := v.exec(ctx, nodeSettings{
		Side: name, Services: services, Bound: s.bound, Dir: v.dir, CgroupRoot: root, Cgroup: v.group,
	}); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	a, err := v.answer()
	if err != nil {
		return nil, errors.Join(err, v.stop())
	}
	v.started = a.Took
	if a.Err != "" {
		v.unstarted = errors.New(a.Err)
		return v, nil
	}
	if err := v.settle(ctx); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

func cgroupRoot() (string, error) {
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			return root, nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted at /sys/fs/cgroup/unified or /sys/fs/cgroup")
}

func (v *side) exec(ctx context.Context, n nodeSettings) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	group, err := os.Open(v.group)
	if err != nil {
		return err
	}
	defer func() { _ = group.Close() }()
	v.cmd = exec.CommandContext(ctx, self, roleNode, string(raw))
	v.cmd.Stderr = os.Stderr
	// Signals would interrupt connect(); and clients must not wait for each other.
	v.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=16")
	v.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(group.Fd()),
	}
	stdin, err := v.cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	v.ask, v.hear = json.NewEncoder(stdin), json.NewDecoder(stdout)
	return v.cmd.Start()
}

func (v *side) answer() (answer, error) {
	var a answer
	if err := v.hear.Decode(&a); err != nil {
		return a, fmt.Errorf("hear from %s: %w", v.name, err)
	}
	return a, nil
}

// measure asks the node and returns what it measured.
func (v *side) measure(q question) (answer, error) {
	if err := v.ask.Encode(q); err != nil {
		return answer{}, fmt.Errorf("ask %s: %w", v.name, err)
	}
	a, err := v.answer()
	if err == nil && a.Err != "" {
		err = fmt.Errorf("measure %s of %s: %s", q.Kind, v.name, a.Err)
	}
	return a, err
}

// settle waits until the node is at rest: a proxy may go over its rules again
// after its start.
func (v *side) settle(ctx context.Context) error {
	const interval, busy, patience = time.Second, 20 * time.Millisecond, 60
	before, err := v.cpu()
	v.startCPU = before
	for range patience {
		if err := errors.Join(err, pause(ctx, interval)); err != nil {
			return err
		}
		var now time.Duration
		if now, err = v.cpu(); now-before < busy {
			return err
		}
		before = now
	}
	return err
}

// cpu returns the processor time of the node's processes.
func (v *side) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join(v.group, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(stat) {
		if text, ok := strings.CutPrefix(string(line), "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, errors.New("read cpu.stat: no usage_usec")
}

// stop kills all processes of the node. Its namespaces, with what the proxy put
// into them, end with the last.
func (v *side) stop() error {
	errs := []error{os.WriteFile(filepath.Join(v.group, "cgroup.kill"), []byte("1"), 0)}
	if v.cmd != nil && v.cmd.Process != nil {
		_ = v.cmd.Wait() // it was killed
	}
	err := os.Remove(v.group)
	for begin := time.Now(); errors.Is(err, syscall.EBUSY) && time.Since(begin) < time.Minute; err = os.Remove(v.group) {
		_ = pause(context.Background(), 10*time.Millisecond) // children of it are still ending
	}
	return errors.Join(append(errs, err, os.RemoveAll(v.dir))...)
}
