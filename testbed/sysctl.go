package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// hostSysctls are the settings that nodes change though they belong to the
// whole machine: kubelet's, kube-proxy's where the kernel lets it, and the
// inotify limit that Up raises because every node counts against one user.
func hostSysctls() []string {
	return []string{
		"vm.overcommit_memory", "vm.panic_on_oom",
		"kernel.panic", "kernel.panic_on_oops",
		"kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
		"net.netfilter.nf_conntrack_max",
		"fs.inotify.max_user_instances", "fs.inotify.max_user_watches",
	}
}

const minInotifyInstances = 8192

// sysctlFile keeps the machine's settings from before the first of several
// clusters on it, and which clusters there are.
const (
	sysctlDir  = "/run/moot-testbed"
	sysctlFile = "sysctls.json"
)

type sysctlRecord struct {
	BootID   string            `json:"bootID"`
	Before   map[string]string `json:"before"`
	Cgroups  []string          `json:"cgroups"`  // controllers that the root did not delegate
	Clusters map[string]string `json:"clusters"` // id to directory
}

func sysctlPath(key string) string {
	return "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
}

func readSysctls() (map[string]string, error) {
	values := make(map[string]string)
	for _, key := range hostSysctls() {
		b, err := os.ReadFile(sysctlPath(key))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("save sysctls: %w", err)
		}
		values[key] = strings.TrimSpace(string(b))
	}
	return values, nil
}

// saveSysctls registers a cluster and returns the settings from before the
// first one, sysctls and what the root cgroup delegates: with another cluster
// up, today's are not the machine's own.
func saveSysctls(id, dir, boot string) (before map[string]string, cgroups []string, err error) {
	err = withSysctlRecord(boot, func(r *sysctlRecord) error {
		if len(r.Clusters) == 0 {
			values, err := readSysctls()
			if err != nil {
				return err
			}
			r.Before = values
			if r.Cgroups, err = rootUndelegated(); err != nil {
				return err
			}
		}
		r.Clusters[id] = dir
		before, cgroups = r.Before, r.Cgroups
		return nil
	})
	return before, cgroups, err
}

// restoreSysctls forgets a cluster and, with the last, puts the settings
// back.
func restoreSysctls(id, boot string, before map[string]string, cgroups []string) error {
	return withSysctlRecord(boot, func(r *sysctlRecord) error {
		delete(r.Clusters, id)
		for other, dir := range r.Clusters {
			if _, err := os.Stat(filepath.Join(dir, "state.json")); errors.Is(err, fs.ErrNotExist) {
				delete(r.Clusters, other) // its directory was deleted by hand
			}
		}
		if len(r.Clusters) > 0 {
			return nil
		}
		now, err := readSysctls()
		if err != nil {
			return err
		}
		var errs []error
		for key, value := range before {
			if old, ok := now[key]; !ok || old == value {
				continue
			}
			if err := os.WriteFile(sysctlPath(key), []byte(value), 0o644); err != nil {
				errs = append(errs, fmt.Errorf("restore sysctl %s: %w", key, err))
			}
		}
		return errors.Join(append(errs, withdraw(cgroups))...)
	})
}

// withSysctlRecord runs fn on the machine's record under a lock, and removes
// the record when no cluster is left in it.
func withSysctlRecord(boot string, fn func(*sysctlRecord) error) error {
	if err := os.MkdirAll(sysctlDir, 0o700); err != nil {
		return fmt.Errorf("record sysctls: %w", err)
	}
	l, err := lockFile(filepath.Join(sysctlDir, "lock"))
	if err != nil {
		return err
	}
	file := filepath.Join(sysctlDir, sysctlFile)
	var r sysctlRecord
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.release()
		return fmt.Errorf("read %s: %w", file, err)
	}
	if r.BootID != boot || r.Clusters == nil {
		r = sysctlRecord{BootID: boot, Clusters: map[string]string{}}
	}
	ferr := fn(&r)
	if len(r.Clusters) == 0 {
		err = errors.Join(ferr, removeRecord(file), l.removeAndRelease())
		_ = os.Remove(sysctlDir)
		return err
	}
	b, err = json.Marshal(r)
	if err == nil {
		err = writeFileAtomic(file, b, 0o600)
	}
	l.release()
	return errors.Join(ferr, err)
}

// removeRecord removes the file and what a killed process had not renamed to it
// yet. The caller holds the lock.
func removeRecord(file string) error {
	files, err := filepath.Glob(filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"-*"))
	errs := []error{err}
	for _, f := range append(files, file) {
		if err := os.Remove(f); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// raiseInotify lets many kubelets and runtimes watch files at once.
func raiseInotify() error {
	const key = "fs.inotify.max_user_instances"
	b, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	var now int
	if _, err := fmt.Sscan(string(b), &now); err != nil || now >= minInotifyInstances {
		return err
	}
	if err := os.WriteFile(sysctlPath(key), fmt.Append(nil, minInotifyInstances), 0o644); err != nil {
		return fmt.Errorf("raise %s: %w", key, err)
	}
	return nil
}
