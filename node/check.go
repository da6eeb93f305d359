package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/ebpf"
	"github.com/mootkube/moot/node/net/proxy"
)

// Severity says what a finding means for a node.
type Severity string

// The severities of a [Finding].
const (
	OK   Severity = "ok"
	Warn Severity = "warn" // the node works, with less
	Fail Severity = "fail" // the node cannot start
)

// Finding is one thing looked at before a node starts.
type Finding struct {
	Name     string   `json:"name"`
	Severity Severity `json:"severity"`
	Detail   string   `json:"detail"`
	Hint     string   `json:"hint,omitempty"` // what to do about it
}

// Failed picks the findings that keep a node from starting, as one error.
func Failed(findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.Severity == Fail {
			errs = append(errs, fmt.Errorf("%s: %s; %s", f.Name, f.Detail, f.Hint))
		}
	}
	return errors.Join(errs...)
}

// Check looks at the host as it is now. It changes nothing, and needs root
// for an answer on everything.
func Check(cfg Config) []Finding {
	return append(checkHost(cfg), checkEBPF())
}

// checkHost is what a node cannot do without. It takes milliseconds, where
// asking the kernel about eBPF takes some tenths of a second.
func checkHost(cfg Config) []Finding {
	checks := []func(Config) Finding{
		checkRoot, checkKernel, checkCgroups, checkRunc, checkNft, checkOverlay,
		checkSwap, checkDataDir, checkMemberPort, checkAPIPort, checkKubeletPort, checkClock,
	}
	findings := make([]Finding, 0, len(checks))
	for _, check := range checks {
		findings = append(findings, check(cfg))
	}
	return findings
}

func checkRoot(Config) Finding {
	f := Finding{Name: "root", Severity: OK, Detail: "running as root"}
	if os.Geteuid() != 0 {
		f.Severity, f.Detail, f.Hint = Fail, fmt.Sprintf("running as user %d", os.Geteuid()), "run it with sudo"
	}
	return f
}

func checkKernel(Config) Finding {
	f := Finding{Name: "kernel"}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.Severity, f.Detail, f.Hint = Fail, err.Error(), "a Linux kernel is needed"
		return f
	}
	release := unix.ByteSliceToString(u.Release[:])
	f.Severity, f.Detail = OK, release
	if major, minor, ok := kernelVersion(release); ok && (major < 6 || major == 6 && minor < 1) {
		f.Severity, f.Hint = Warn, "6.1 or later is what this is tried on"
	}
	return f
}

// kernelVersion reads the first two numbers of a release such as "6.1.0-18-amd64".
func kernelVersion(release string) (major, minor int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	digits := strings.IndexFunc(parts[1]+"x", func(r rune) bool { return r < '0' || r > '9' })
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1][:digits])
	return major, minor, err1 == nil && err2 == nil
}

// cgroupV2 reports whether the host runs on cgroup v2 alone.
func cgroupV2() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

func checkCgroups(Config) Finding {
	f := Finding{Name: "cgroups", Severity: OK}
	var have []string
	if cgroupV2() {
		f.Detail = "v2"
		data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			f.Severity, f.Detail, f.Hint = Fail, err.Error(), "mount cgroup2 at /sys/fs/cgroup"
			return f
		}
		have = strings.Fields(string(data))
	} else {
		f.Severity, f.Detail, f.Hint = Warn, "v1", "it works; Kubernetes will drop v1, boot with systemd.unified_cgroup_hierarchy=1"
		data, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			f.Severity, f.Detail, f.Hint = Fail, err.Error(), "mount /proc"
			return f
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.SplitN(line, ":", 3); len(fields) == 3 {
				have = append(have, strings.Split(fields[1], ",")...)
			}
		}
	}
	var missing []string
	for _, want := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(have, want) {
			missing = append(missing, want)
		}
	}
	if len(missing) > 0 {
		f.Severity = Fail
		f.Detail += ", without " + strings.Join(missing, ", ")
		f.Hint = "enable these controllers (on a Raspberry Pi: cgroup_enable=memory on the kernel command line)"
	}
	return f
}

func checkBinary(name, pkg string, missing Severity, why string) Finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return Finding{Name: name, Severity: missing, Detail: "not found; " + why, Hint: "apt-get install " + pkg}
	}
	return Finding{Name: name, Severity: OK, Detail: path}
}

func checkRunc(Config) Finding { return checkBinary("runc", "runc", Fail, "it starts containers") }

func checkNft(Config) Finding {
	return checkBinary("nft", "nftables", Fail, "Services and the pod network are programmed with it")
}

func checkOverlay(Config) Finding {
	f := Finding{Name: "overlayfs", Severity: OK, Detail: "available"}
	data, err := os.ReadFile("/proc/filesystems")
	if err == nil && strings.Contains(string(data), "\toverlay\n") {
		return f
	}
	if moduleAvailable("overlay") {
		f.Detail = "kernel module, loaded when needed"
		return f
	}
	f.Severity, f.Detail, f.Hint = Warn, "not in this kernel", "images are unpacked by copying, which takes more room"
	return f
}

// moduleAvailable reports whether modprobe could load the module.
func moduleAvailable(name string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]))
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		data, err := os.ReadFile(filepath.Join(dir, list))
		if err == nil && strings.Contains(string(data), "/"+name+".ko") {
			return true
		}
	}
	return false
}

func checkSwap(Config) Finding {
	f := Finding{Name: "swap", Severity: OK, Detail: "none"}
	data, err := os.ReadFile("/proc/swaps")
	if err == nil && strings.Count(strings.TrimSpace(string(data)), "\n") > 0 {
		f.Detail = "on; pods do not use it"
	}
	return f
}

const (
	leastFree = 64 << 20 // bytes under which a node refuses to start
	wantFree  = 2 << 30  // bytes under which a node warns
)

func checkDataDir(cfg Config) Finding {
	f := Finding{Name: "data directory", Severity: OK}
	dir := cfg.DataDir
	for { // the nearest directory that exists
		if info, err := os.Stat(dir); err == nil {
			if !info.IsDir() {
				f.Severity, f.Detail, f.Hint = Fail, dir+" is not a directory", "choose another --data-dir"
				return f
			}
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		f.Severity, f.Detail, f.Hint = Fail, fmt.Sprintf("look at %s: %v", dir, err), "choose another --data-dir"
		return f
	}
	free := fs.Bavail * uint64(fs.Bsize) //nolint:gosec // a block size is positive
	f.Detail = fmt.Sprintf("%s, %d MiB free", cfg.DataDir, free>>20)
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		f.Severity, f.Detail, f.Hint = Fail, cfg.DataDir+" is on a read-only file system", "choose another --data-dir"
	case free < leastFree:
		f.Severity, f.Hint = Fail, fmt.Sprintf("free at least %d MiB or choose another --data-dir", leastFree>>20)
	case free < wantFree:
		f.Severity, f.Hint = Warn, "images and logs will soon fill it"
	}
	return f
}

func checkMemberPort(cfg Config) Finding {
	return checkPort("member port", cfg.Port, "another program, or another moot, has it; stop it or choose --port")
}

func checkAPIPort(cfg Config) Finding {
	return checkPort("API port", cfg.APIPort, "another API server, or another moot, is running; stop it or choose --api-port")
}

const kubeletPort = 10250

func checkKubeletPort(Config) Finding {
	return checkPort("kubelet port", kubeletPort, "another kubelet is running; stop it")
}

func checkPort(name string, port int, hint string) Finding {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) //nolint:noctx // binding a socket does not block
	if err != nil {
		detail := err.Error()
		if errors.Is(err, syscall.EADDRINUSE) {
			detail = fmt.Sprintf("%d is in use", port)
		}
		return Finding{Name: name, Severity: Fail, Detail: detail, Hint: hint}
	}
	_ = l.Close()
	return Finding{Name: name, Severity: OK, Detail: fmt.Sprintf("%d is free", port)}
}

func checkClock(Config) Finding {
	f := Finding{Name: "clock", Severity: OK, Detail: time.Now().UTC().Format(time.RFC3339)}
	if time.Now().Before(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		f.Severity, f.Hint = Fail, "set the clock: certificates made now would be refused later"
	}
	return f
}

func checkEBPF() Finding {
	f := Finding{Name: "eBPF", Severity: OK}
	var have, lack, missing []string
	for _, feature := range ebpf.Probe() {
		switch {
		case feature.Err == nil:
			have = append(have, feature.Name)
		case feature.Required:
			missing = append(missing, feature.Name)
		default:
			lack = append(lack, feature.Name)
		}
	}
	if err := proxy.CheckMounts(); err != nil {
		missing = append(missing, err.Error())
	}
	f.Detail = strings.Join(have, ", ")
	if len(lack) > 0 {
		f.Detail += "; goes without " + strings.Join(lack, ", ")
	}
	if len(missing) > 0 {
		f.Severity = Warn
		f.Detail += "; lacks " + strings.Join(missing, ", ")
		f.Hint = "kube-proxy (nftables) serves Services in its place"
	}
	return f
}
