package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc, the same on every architecture.
const clockTick = 10 * time.Millisecond

// nodeCPU is the processor time that the node this program runs on has used
// since its boot, but for what was run on it with testbed exec: this program.
// Daemon, shims, plugin, runc and the pods themselves are in it.
func nodeCPU() (time.Duration, error) {
	all, err := cgroupCPU("")
	if err != nil {
		return 0, err
	}
	own, err := cgroupCPU("exec")
	return all - own, err
}

const cgroupMount = "/sys/fs/cgroup"

// cgroupCPU reads the processor time of a cgroup, of v1 or v2.
func cgroupCPU(group string) (time.Duration, error) {
	raw, err := os.ReadFile(filepath.Join(cgroupMount, "cpuacct", group, "cpuacct.usage"))
	if err == nil {
		n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.Duration(n), err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	raw, err = os.ReadFile(filepath.Join(cgroupMount, group, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	n, err := keyed(raw, "usage_usec")
	return time.Duration(n) * time.Microsecond, err
}

// setShares gives a cluster, all of it together, that many times the processor
// time of a process outside when both want it. It goes with the cluster.
func setShares(id string, times int) error {
	group := "moot-testbed-" + id
	err := os.WriteFile(filepath.Join("/sys/fs/cgroup/cpu", group, "cpu.shares"), fmt.Append(nil, 1024*times), 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(filepath.Join("/sys/fs/cgroup", group, "cpu.weight"), fmt.Append(nil, min(100*times, 10000)), 0)
	}
	if err != nil {
		return fmt.Errorf("set share of processor time: %w", err)
	}
	return nil
}

// keyed finds the number after a key in lines of "key value" or "key: value".
func keyed(raw []byte, key string) (int64, error) {
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.TrimSuffix(f[0], ":") == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s", key)
}

// usage is what one process has used.
type usage struct {
	Name    string // base name of its program
	CPU     time.Duration
	Anon    int64 // bytes of anonymous memory
	Written int64 // bytes sent towards the disk, since its start
}

// nodeProcesses lists the processes in the pid namespace of a node's init, by
// pid: those of pods have namespaces of their own and are not in it.
func nodeProcesses(initPID int) (map[int]usage, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", initPID))
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	out := map[int]usage{}
	for _, dir := range dirs {
		if have, err := os.Readlink(dir + "/ns/pid"); err != nil || have != want {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == initPID {
			continue
		}
		u, err := readUsage(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		out[pid] = u
	}
	return out, nil
}

func readUsage(dir string) (usage, error) {
	var u usage
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, err
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return u, fmt.Errorf("read %s/stat: short line", dir)
	}
	for _, field := range f[11:13] { // utime and stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(n) * clockTick
	}
	command, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return u, err
	}
	first, _, _ := strings.Cut(string(command), "\x00")
	u.Name = filepath.Base(first)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return u, err
	}
	kb, err := keyed(status, "RssAnon")
	if err != nil {
		return u, fs.ErrNotExist // a zombie has no memory
	}
	u.Anon = kb << 10
	io, err := os.ReadFile(dir + "/io")
	if err != nil {
		return u, err
	}
	u.Written, err = keyed(io, "write_bytes")
	return u, err
}
