package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// bootConfig is what a node's init is told by the command that starts it.
type bootConfig struct {
	Name      string            `json:"name"`
	Dir       string            `json:"dir"` // of the node, on the machine
	Bin       string            `json:"bin"`
	MachineID string            `json:"machineID"`
	Files     map[string]string `json:"files"` // under /etc: hosts, resolv.conf, …
	Cgroups   []hierarchy       `json:"cgroups"`
}

// Paths inside a node.
const (
	runDir      = "/run/testbed"
	binDir      = runDir + "/bin"
	controlSock = runDir + "/init.sock"
	notifySock  = runDir + "/notify"
)

// diskDir is the root directory of a node, its disk: it outlives a crash.
func (b bootConfig) diskDir() string { return filepath.Join(b.Dir, "disk") }

// mountRoot builds the node's file tree and makes it the root of this mount
// namespace. The node's own disk holds /var, /tmp, /mnt, /srv and whatever is
// made in /; /etc and /opt are the machine's with the node's changes laid
// over them; /usr, /home and the rest are the machine's.
func mountRoot(b bootConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	disk := b.diskDir()
	if err := os.MkdirAll(disk, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(disk, disk, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind disk: %w", err)
	}
	steps := []func() error{
		func() error { return bindMachine(disk) },
		func() error { return mountOverlay(b, "etc") },
		func() error { return mountOverlay(b, "opt") },
		func() error { return makeOwnDirs(disk) },
		func() error { return mountDev(disk) },
		func() error { return mountKernel(disk, b) },
		func() error { return mountRun(disk, b) },
		func() error { return pivot(disk) },
		func() error { return writeIdentity(b) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	// kubelet and containerd need propagation into containers; the peers are
	// all in this namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// bindMachine puts the machine's top-level directories into the node, but
// for those a node has of its own.
func bindMachine(disk string) error {
	own := []string{"proc", "sys", "dev", "run", "tmp", "var", "etc", "opt", "mnt", "media", "srv", "lost+found"}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(own, e.Name()) {
			continue
		}
		from, to := "/"+e.Name(), filepath.Join(disk, e.Name())
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(from)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, to); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case e.IsDir():
			if err := bind(from, to, unix.MS_REC); err != nil {
				return err
			}
		}
	}
	return nil
}

func bind(from, to string, flags uintptr) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	return nil
}

// mountOverlay lays the node's own changes over /name of the machine. When
// the node's directory is itself below /name the kernel refuses that, and
// the node starts with an empty one.
func mountOverlay(b bootConfig, name string) error {
	lower, to := "/"+name, filepath.Join(b.diskDir(), name)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(lower); err != nil || strings.HasPrefix(b.Dir, lower+"/") {
		return bind(filepath.Join(b.Dir, name), to, 0)
	}
	upper, work := filepath.Join(b.Dir, name), filepath.Join(b.Dir, name+".work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// Short relative names: the directory may hold characters that mean
	// something in mount options.
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(b.Dir); err != nil {
		return err
	}
	defer func() { _ = os.Chdir(wd) }()
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, name, name+".work")
	if err := unix.Mount("overlay", to, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay on /%s: %w", name, err)
	}
	return nil
}

func makeOwnDirs(disk string) error {
	for _, d := range []string{"proc", "sys", "dev", "run", "mnt", "media", "srv", "var/lib", "var/log", "var/cache", "var/spool"} {
		if err := os.MkdirAll(filepath.Join(disk, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(disk, d), 0o777); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(disk, d), 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(disk, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func mountDev(disk string) error {
	dev := filepath.Join(disk, "dev")
	if err := bind("/dev", dev, 0); err != nil {
		return err
	}
	for _, m := range []struct{ dir, fstype, opts string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"shm", "tmpfs", "mode=1777"},
		{"mqueue", "mqueue", ""},
	} {
		to := filepath.Join(dev, m.dir)
		if _, err := os.Stat(to); err != nil {
			continue // the machine has none either
		}
		if err := unix.Mount(m.fstype, to, m.fstype, 0, m.opts); err != nil {
			return fmt.Errorf("mount /dev/%s: %w", m.dir, err)
		}
	}
	return nil
}

// mountKernel mounts proc, sysfs and, as the cgroup namespace shows them,
// the cgroup hierarchies, laid out as on the machine.
func mountKernel(disk string, b bootConfig) error {
	proc, sys := filepath.Join(disk, "proc"), filepath.Join(disk, "sys")
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for dir, fstype := range map[string]string{"fs/bpf": "bpf", "kernel/tracing": "tracefs", "kernel/debug": "debugfs", "kernel/security": "securityfs"} {
		err := unix.Mount(fstype, filepath.Join(sys, dir), fstype, 0, "")
		if err != nil && fstype == "bpf" {
			return fmt.Errorf("mount /sys/fs/bpf: %w", err)
		}
	}
	for _, h := range b.Cgroups {
		if h.Mount == "/sys/fs/cgroup" {
			return mountHierarchy(h, filepath.Join(sys, "fs/cgroup"))
		}
	}
	top := filepath.Join(sys, "fs/cgroup")
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	for _, h := range b.Cgroups {
		to := filepath.Join(disk, h.Mount)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := mountHierarchy(h, to); err != nil {
			return err
		}
	}
	// Joined controllers have links in their own names: cpu -> cpu,cpuacct.
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join("/sys/fs/cgroup", e.Name()))
		if err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(top, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func mountHierarchy(h hierarchy, to string) error {
	fstype := "cgroup"
	if h.V2 {
		fstype = "cgroup2"
	}
	if err := unix.Mount(fstype, to, fstype, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Options); err != nil {
		return fmt.Errorf("mount %s: %w", h.Mount, err)
	}
	return nil
}

// mountRun mounts the node's /run, lost at power loss, with the binaries
// under test in it.
func mountRun(disk string, b bootConfig) error {
	run := filepath.Join(disk, "run")
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(run, "lock"), 0o755); err != nil {
		return err
	}
	return bind(b.Bin, filepath.Join(disk, binDir), 0)
}

// pivot makes disk the root and drops the machine's tree.
func pivot(disk string) error {
	if err := os.Chdir(disk); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop the machine's root: %w", err)
	}
	return os.Chdir("/")
}

// writeIdentity gives the node a name and a machine id for good, and a boot
// id for this boot: kubelet tells a reboot by the last.
func writeIdentity(b bootConfig) error {
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	files := map[string]string{"hostname": b.Name + "\n", "machine-id": b.MachineID + "\n"}
	maps.Copy(files, b.Files)
	for name, content := range files {
		path := filepath.Join("/etc", name)
		// resolv.conf is often a link into the machine's /run.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	own := filepath.Join(runDir, "boot_id")
	if err := os.WriteFile(own, id, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(own, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("set boot id: %w", err)
	}
	return nil
}
