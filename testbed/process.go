package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names one process for ever: the kernel reuses pids, but never a
// pid together with a start time within one boot.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
}

// identify reads the start time of a running process.
func identify(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	// The command name may hold spaces and parentheses; fields count from
	// the last closing one.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("identify process %d: short stat line", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return process{PID: pid, Start: start}, nil
}

// open returns a pidfd of p, or an error wrapping os.ErrProcessDone when p
// is gone or its pid belongs to another process by now.
func (p process) open() (*os.File, error) {
	if p.PID <= 0 {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	now, err := identify(p.PID)
	if err != nil || now.Start != p.Start || exited(f, 0) {
		_ = f.Close()
		return nil, os.ErrProcessDone
	}
	return f, nil
}

// alive reports whether p runs (a zombie does not).
func (p process) alive() bool {
	f, err := p.open()
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// exited waits up to d for the process behind a pidfd to be dead.
func exited(pidfd *os.File, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
	return err == nil && n == 1
}

// waitExit blocks until the process behind a pidfd is dead or ctx is done,
// and collects it when it is our child.
func waitExit(ctx context.Context, pidfd *os.File, pid int) error {
	for !exited(pidfd, 100*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return nil
}

// killAndWait sends SIGKILL to p and returns when it is dead. A process that
// is gone already is no error.
func (p process) killAndWait(ctx context.Context, thaw func() error) error {
	f, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if thaw != nil {
		if err := thaw(); err != nil {
			return err
		}
	}
	return waitExit(ctx, f, p.PID)
}

// hostPID finds the pid, in our pid namespace, of the process that the pid
// namespace of init knows as nspid.
func hostPID(init process, nspid int) (process, error) {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init.PID))
	if err != nil {
		return process{}, fmt.Errorf("find process %d of the node: %w", nspid, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return process{}, fmt.Errorf("find process %d of the node: %w", nspid, err)
	}
	want := strconv.Itoa(nspid)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if l, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || l != ns {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == want {
				return identify(pid)
			}
		}
	}
	return process{}, fmt.Errorf("find process %d of the node: %w", nspid, os.ErrProcessDone)
}

// bootID is the kernel's identity of this boot of the machine: pids, mounts
// and cgroups of an earlier boot are gone.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
