package kubelet

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const procMountInfo = "/proc/self/mountinfo"

// cgroupMounts tells where the cgroup controllers are mounted.
type cgroupMounts struct {
	unified string              // pure v2: the mount at /sys/fs/cgroup
	v1      map[string][]string // v1 controller to mount points
	v1Paths map[string]bool     // mount points of v1 controllers
}

const cgroupMountPoint = "/sys/fs/cgroup"

// parseCgroupMounts reads mountinfo. A cgroup2 mount elsewhere than at
// /sys/fs/cgroup makes a hybrid host, on which the kubelet uses v1.
func parseCgroupMounts(mountinfo string) cgroupMounts {
	m := cgroupMounts{v1: map[string][]string{}, v1Paths: map[string]bool{}}
	scanner := bufio.NewScanner(strings.NewReader(mountinfo))
	for scanner.Scan() {
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 3 {
			continue
		}
		point := head[4]
		switch tail[0] {
		case "cgroup2":
			if point == cgroupMountPoint {
				m.unified = point
			}
		case "cgroup":
			for option := range strings.SplitSeq(tail[2], ",") {
				m.v1[option] = append(m.v1[option], point)
			}
			m.v1Paths[point] = true
		}
	}
	return m
}

// checkCgroups looks for the controllers the kubelet needs, and for the cgroup
// that pods go under.
func checkCgroups(mountinfoFile, root string) []Problem {
	raw, err := os.ReadFile(mountinfoFile)
	if err != nil {
		return []Problem{{What: fmt.Sprintf("mounts cannot be read (%v)", err), Fix: "mount /proc", Fatal: true}}
	}
	m := parseCgroupMounts(string(raw))
	if m.unified != "" {
		return checkUnified(filepath.Join(m.unified, root))
	}
	var missing []string
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory"} {
		if len(m.v1[controller]) == 0 {
			missing = append(missing, controller)
		}
	}
	if len(missing) > 0 {
		return []Problem{{
			What: "cgroup controllers not mounted: " + strings.Join(missing, ", "),
			Fix:  "mount cgroup2 at " + cgroupMountPoint + ", or boot with cgroup_enable=memory", Fatal: true,
		}}
	}
	var found []Problem
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "name=systemd"} {
		for _, point := range m.v1[controller] {
			if dir := filepath.Join(point, root); !isDir(dir) {
				found = append(found, Problem{What: fmt.Sprintf("cgroup root %s does not exist", dir), Fix: "create it, or leave out --cgroup-root", Fatal: true})
			}
		}
	}
	return found
}

func checkUnified(dir string) []Problem {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return []Problem{{What: fmt.Sprintf("cgroup root %s cannot be read (%v)", dir, err), Fix: "create it, or leave out --cgroup-root", Fatal: true}}
	}
	have := strings.Fields(string(raw))
	var missing []string
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(have, controller) {
			missing = append(missing, controller)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return []Problem{{
		What: fmt.Sprintf("cgroup %s lacks controllers: %s", dir, strings.Join(missing, ", ")),
		Fix:  "delegate them (systemd: Delegate=yes), or boot with cgroup_enable=memory", Fatal: true,
	}}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
