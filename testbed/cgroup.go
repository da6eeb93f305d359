package testbed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup hierarchy of the machine.
type hierarchy struct {
	Mount   string `json:"mount"`   // where, for instance /sys/fs/cgroup/memory
	V2      bool   `json:"v2"`      //
	Options string `json:"options"` // v1: controllers or name=, as mount takes them
}

// Leaves of a node's cgroup. Processes sit in leaves alone, beside the
// kubepods that kubelet makes: v2 allows no processes in inner nodes.
const (
	leafInit = "init"
	leafMoot = "moot"
	leafExec = "exec"
)

// hierarchies lists the mounted hierarchies under /sys/fs/cgroup: every v1
// controller, the v2 one of a hybrid machine, or the one of a v2 machine.
func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	hs := parseHierarchies(string(b))
	if len(hs) == 0 {
		return nil, errors.New("list cgroup hierarchies: none mounted under /sys/fs/cgroup")
	}
	return hs, nil
}

func parseHierarchies(mountinfo string) []hierarchy {
	var hs []hierarchy
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 || !strings.HasPrefix(l[4], "/sys/fs/cgroup") {
			continue
		}
		h := hierarchy{Mount: l[4], V2: r[0] == "cgroup2"}
		if r[0] != "cgroup" && !h.V2 {
			continue
		}
		if !h.V2 {
			h.Options = v1Options(r[2])
		}
		if !slices.ContainsFunc(hs, func(o hierarchy) bool { return o.Mount == h.Mount }) {
			hs = append(hs, h)
		}
	}
	return hs
}

// v1Options keeps of the super block options those that name the hierarchy.
func v1Options(super string) string {
	var keep []string
	for o := range strings.SplitSeq(super, ",") {
		name, _, assigned := strings.Cut(o, "=")
		switch {
		case o == "rw" || o == "ro" || o == "xattr" || o == "noprefix" || o == "clone_children":
		case name == "release_agent":
		case name == "name":
			keep = append(keep, "none", o)
		case !assigned:
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

func (h hierarchy) cluster(id string) string { return filepath.Join(h.Mount, "moot-testbed-"+id) }

func (h hierarchy) node(id, name string) string { return filepath.Join(h.cluster(id), name) }

// createCgroups makes the cgroup of a node with its leaves in every
// hierarchy.
func createCgroups(id, node string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if h.V2 {
			if err := delegate(h.Mount); err != nil {
				return err
			}
		}
		for _, dir := range []string{h.cluster(id), h.node(id, node)} {
			if err := makeCgroup(h, dir); err != nil {
				return err
			}
			if h.V2 && dir == h.cluster(id) {
				if err := delegate(dir); err != nil {
					return err
				}
			}
		}
		for _, leaf := range []string{leafInit, leafMoot, leafExec} {
			if err := makeCgroup(h, filepath.Join(h.node(id, node), leaf)); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeCgroup creates one cgroup. A v1 cpuset takes no process until it has
// processors and memory nodes.
func makeCgroup(h hierarchy, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	if h.V2 {
		return nil
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		v, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
		if err := writeCgroup(filepath.Join(dir, f), strings.TrimSpace(string(v))); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	return nil
}

// delegate enables the controllers that kubelet uses, as far as the machine
// has them, for the children of a v2 cgroup.
func delegate(dir string) error {
	missing, err := undelegated(dir)
	if err != nil {
		return err
	}
	for _, name := range missing {
		if err := writeCgroup(filepath.Join(dir, "cgroup.subtree_control"), "+"+name); err != nil {
			return fmt.Errorf("delegate cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

// undelegated lists the controllers that delegate would enable.
func undelegated(dir string) ([]string, error) {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("delegate cgroup: %w", err)
	}
	given, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return nil, fmt.Errorf("delegate cgroup: %w", err)
	}
	var missing []string
	for name := range strings.FieldsSeq(string(has)) {
		if slices.Contains([]string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"}, name) &&
			!slices.Contains(strings.Fields(string(given)), name) {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// rootUndelegated lists what the machine's own root does not delegate, so
// that it can be put back.
func rootUndelegated() ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range hs {
		if h.V2 {
			return undelegated(h.Mount)
		}
	}
	return nil, nil
}

// withdraw undoes delegate at the machine's root. A controller that somebody
// else has come to use stays.
func withdraw(names []string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		for _, name := range names {
			if !h.V2 {
				continue
			}
			err := writeCgroup(filepath.Join(h.Mount, "cgroup.subtree_control"), "-"+name)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("withdraw cgroup controller %s: %w", name, err)
			}
		}
	}
	return nil
}

func writeCgroup(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// moveProcess puts a whole process into a leaf of the node, in every
// hierarchy.
func moveProcess(id, node, leaf string, pid int) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if err := writeCgroup(filepath.Join(h.node(id, node), leaf, "cgroup.procs"), fmt.Sprint(pid)); err != nil {
			return fmt.Errorf("move process %d to cgroup: %w", pid, err)
		}
	}
	return nil
}

// enterThread puts the calling thread, which the caller has locked, into a
// cgroup of the node in every v1 hierarchy, so that what it forks starts
// there; for v2, where threads of one process cannot part, it returns the
// open directory for clone3. The caller ends the thread afterwards.
func enterThread(id, node, leaf string) (*os.File, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var v2 *os.File
	for _, h := range hs {
		dir := filepath.Join(h.node(id, node), leaf)
		if h.V2 {
			if v2, err = os.Open(dir); err != nil {
				return nil, fmt.Errorf("enter cgroup: %w", err)
			}
			continue
		}
		if err := writeCgroup(filepath.Join(dir, "tasks"), fmt.Sprint(unix.Gettid())); err != nil {
			if v2 != nil {
				_ = v2.Close()
			}
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return v2, nil
}

// freeze stops or continues every process of a node and returns when that is
// so.
func freeze(ctx context.Context, id, node string, frozen bool) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(hs, func(h hierarchy) bool { return h.Options == "freezer" })
	if i >= 0 {
		file := filepath.Join(hs[i].node(id, node), "freezer.state")
		want := "THAWED"
		if frozen {
			want = "FROZEN"
		}
		if err := writeCgroup(file, want); err != nil {
			return fmt.Errorf("freeze %s: %w", node, err)
		}
		return waitFileContains(ctx, file, want)
	}
	i = slices.IndexFunc(hs, func(h hierarchy) bool { return h.V2 })
	if i < 0 {
		return fmt.Errorf("freeze %s: no freezer cgroup on this machine", node)
	}
	dir, want, state := hs[i].node(id, node), "0", "frozen 0"
	if frozen {
		want, state = "1", "frozen 1"
	}
	if err := writeCgroup(filepath.Join(dir, "cgroup.freeze"), want); err != nil {
		return fmt.Errorf("freeze %s: %w", node, err)
	}
	return waitFileContains(ctx, filepath.Join(dir, "cgroup.events"), state)
}

func waitFileContains(ctx context.Context, file, want string) error {
	return poll(ctx, 5*time.Millisecond, "wait for "+want+" in "+file, func() (bool, error) {
		b, err := os.ReadFile(file)
		return strings.Contains(string(b), want), err
	})
}

// removeCgroups removes the cgroup of a node, or of the whole cluster when
// node is empty, from every hierarchy. No process may run in it; those that
// are on their way out are waited for.
func removeCgroups(ctx context.Context, id, node string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		root := filepath.Join(h.cluster(id), node)
		err := poll(ctx, 10*time.Millisecond, "remove cgroup "+root, func() (bool, error) {
			err := removeCgroupTree(root)
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// poll calls done until it says so, fails or ctx ends.
func poll(ctx context.Context, every time.Duration, what string, done func() (bool, error)) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-t.C:
		}
	}
}
