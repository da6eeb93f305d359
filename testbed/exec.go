package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is what Exec runs on a node or a machine.
type Command struct {
	Argv []string
	// Env is added to the environment there.
	Env []string
	// Dir is where to run, "/" when empty or absent on the node.
	Dir    string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Signals are passed on to the command. Nil passes none.
	Signals <-chan os.Signal
}

// Exec runs a command in all namespaces of a node and in the exec leaf of
// its cgroup, and returns its exit status: 128 and the signal's number when a
// signal ended it. The command is killed when ctx ends; when this process is
// killed it runs on, at the latest until the node's end.
func (c *Cluster) Exec(ctx context.Context, node string, cmd Command) (int, error) {
	s, err := c.load()
	if err != nil {
		return 0, err
	}
	n, err := s.node(node)
	if err != nil {
		return 0, err
	}
	if n.Paused {
		return 0, fmt.Errorf("%s is paused, resume it first", node)
	}
	pidfd, err := n.Init.open()
	if errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("%s is off, start it first", node)
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = pidfd.Close() }()
	return inThread(func() (int, error) {
		cgroupDir, err := enterThread(s.ID, n.Name, leafExec)
		if err != nil {
			return 0, err
		}
		if cgroupDir != nil {
			defer func() { _ = cgroupDir.Close() }()
		}
		if err := enterNode(pidfd); err != nil {
			return 0, fmt.Errorf("enter %s: %w", node, err)
		}
		return run(ctx, cmd, nodePath, slices.Concat(nodeEnv(), []string{"KUBECONFIG=" + kubeconfig}), cgroupDir)
	})
}

// enterNode moves the calling thread into the namespaces behind a pidfd. The
// pid namespace is that of children.
func enterNode(pidfd *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|
		unix.CLONE_NEWUTS|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP)
}

// run starts the command, which is looked for on a path, from the calling
// thread, in that thread's namespaces, and waits for it.
func run(ctx context.Context, c Command, path string, env []string, cgroupDir *os.File) (int, error) {
	if len(c.Argv) == 0 {
		return 0, errors.New("run: no command")
	}
	file, err := lookPath(c.Argv[0], path)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, file, c.Argv[1:]...)
	cmd.Args[0] = c.Argv[0]
	cmd.Env = slices.Concat(env, c.Env)
	cmd.Dir = "/"
	if st, err := os.Stat(c.Dir); err == nil && st.IsDir() {
		cmd.Dir = c.Dir
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	if cgroupDir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroupDir.Fd())}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case sig := <-c.Signals:
				_ = cmd.Process.Signal(sig)
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(done)
	<-passed
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), ctx.Err()
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// lookPath finds a command on a PATH, as the calling thread sees the files.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(path, ":") {
		p := dir + "/" + name
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}
