// Package leak tells what a cluster has left behind on the machine. A test
// takes a Snapshot before and one after, and what the second has beyond the
// first is the leak: processes of ours, cgroups, mounts, namespaces held by
// mounts, links, nftables tables, eBPF pins, changed sysctls. BPF lists eBPF
// programs, maps and links, for those who compare them on a quiet machine.
//
// The package only reads. What belongs to another cluster that is up is not
// listed, and no sysctls and delegated cgroup controllers while there is one.
// What unrelated programs do in the meantime may show up in mounts and links;
// processes and cgroups are told by names that only this project uses.
package leak

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Snapshot is what there is, by kind, each as a set of lines for a human.
type Snapshot map[string]map[string]bool

// Take looks at the machine. It needs root.
func Take() (Snapshot, error) {
	s := Snapshot{}
	others, err := living()
	if err != nil {
		return nil, fmt.Errorf("look for other clusters: %w", err)
	}
	for kind, look := range map[string]func(add func(string)) error{
		"process": processes, "cgroup": cgroups, "mount": mounts, "link": links,
		"nftables": tables, "bpf pin": pins, "sysctl": sysctls, "delegation": delegations, "file": files,
	} {
		set := map[string]bool{}
		if len(others) > 0 && (kind == "sysctl" || kind == "delegation") {
			continue // they change these as well
		}
		if err := look(func(line string) { set[line] = true }); err != nil {
			return nil, fmt.Errorf("look for a leaked %s: %w", kind, err)
		}
		maps.DeleteFunc(set, func(line string, _ bool) bool { return others.own(line) })
		s[kind] = set
	}
	return s, nil
}

// clusters are those that testbed has on record for this machine, by id.
type clusters map[string]string

func living() (clusters, error) {
	b, err := os.ReadFile("/run/moot-testbed/sysctls.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var record struct {
		Clusters clusters `json:"clusters"`
	}
	if err := json.Unmarshal(b, &record); err != nil {
		return nil, err
	}
	maps.DeleteFunc(record.Clusters, func(_, dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "state.json"))
		return err != nil
	})
	return record.Clusters, nil
}

// own reports whether a line names the cgroup or the directory of one of
// them, or their record.
func (c clusters) own(line string) bool {
	for id, dir := range c {
		if strings.Contains(line, "moot-testbed-"+id) || strings.Contains(line, dir+"/") ||
			strings.HasPrefix(line, "/run/moot-testbed") {
			return true
		}
	}
	return false
}

// Since lists what s has and before has not; a sysctl shows up with its new
// value.
func (s Snapshot) Since(before Snapshot) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(s)) {
		if before[kind] == nil {
			continue // not looked at then: another cluster was up
		}
		for _, line := range slices.Sorted(maps.Keys(s[kind])) {
			if !before[kind][line] {
				out = append(out, kind+": "+line)
			}
		}
	}
	return out
}

// processes finds inits, registries, shims and daemons, and whatever else
// sits in a cgroup of a testbed.
func processes(add func(string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // gone, a kernel thread or a zombie
		}
		cgroup, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		base := filepath.Base(args[0])
		if strings.HasPrefix(base, "moot-testbed-") || strings.Contains(base, "containerd-shim") ||
			strings.Contains(base, "moot-shim") || bytes.Contains(cgroup, []byte("/moot-testbed-")) {
			first, _, _ := bytes.Cut(cgroup, []byte("\n"))
			add(fmt.Sprintf("%s %s in %s", e.Name(), strings.Join(args, " "), first))
		}
	}
	return nil
}

func cgroups(add func(string)) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	for _, pattern := range []string{"moot-testbed-*", "kubepods*"} {
		for _, top := range append(tops, "/sys/fs/cgroup") {
			found, err := filepath.Glob(filepath.Join(top, pattern))
			if err != nil {
				return err
			}
			for _, f := range found {
				add(f)
			}
		}
	}
	return nil
}

// delegations lists what the machine's root hands down to its cgroups.
func delegations(add func(string)) error {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		b, err := os.ReadFile(root + "/cgroup.subtree_control")
		for name := range strings.FieldsSeq(string(b)) {
			if err == nil {
				add(root + " delegates " + name)
			}
		}
	}
	return nil
}

// mounts lists where something is mounted; network namespaces held by a
// mount are among them, as nsfs.
func mounts(add func(string)) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) > 4 && len(r) > 0 {
			add(r[0] + " on " + l[4])
		}
	}
	return nil
}

func links(add func(string)) error {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	for _, e := range entries {
		add(e.Name())
	}
	return nil
}

func tables(add func(string)) error {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("nft list tables: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		add(strings.TrimSpace(line))
	}
	return nil
}

func pins(add func(string)) error {
	return filepath.WalkDir("/sys/fs/bpf", func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			add(path)
		}
		return nil
	})
}

// sysctls lists the machine's settings, without those that are counters or
// belong to a namespace.
func sysctls(add func(string)) error {
	return filepath.WalkDir("/proc/sys", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() {
			switch path {
			case "/proc/sys/net", "/proc/sys/kernel/random", "/proc/sys/fs/binfmt_misc", "/proc/sys/fs/xfs":
				return fs.SkipDir
			}
			return nil
		}
		switch filepath.Base(path) {
		case "dentry-state", "file-nr", "inode-nr", "inode-state", "aio-nr", "ns_last_pid", "pty", "nr",
			"compact_memory", "drop_caches", "stat_refresh", "hostname", "domainname":
			return nil
		}
		if st, err := d.Info(); err != nil || st.Mode()&0o200 == 0 || st.Mode()&0o400 == 0 {
			return nil
		}
		if b, err := os.ReadFile(path); err == nil {
			add(strings.TrimPrefix(path, "/proc/sys/") + " = " + strings.TrimSpace(string(b)))
		}
		return nil
	})
}

// files looks where kubelet, containerd and testbed would write if they were
// not kept in their nodes.
func files(add func(string)) error {
	for _, path := range []string{
		"/etc/moot", "/etc/cni", "/opt/cni", "/var/lib/moot", "/var/lib/kubelet", "/var/lib/cni",
		"/var/lib/containerd", "/var/log/pods", "/var/log/containers", "/run/moot", "/run/containerd",
		"/run/moot-testbed", "/run/netns",
	} {
		entries, err := os.ReadDir(path)
		if err != nil {
			continue
		}
		add(path)
		for _, e := range entries {
			add(filepath.Join(path, e.Name()))
		}
	}
	return nil
}
