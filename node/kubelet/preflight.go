package kubelet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
)

// Problem is one reason why the kubelet would not start, or would start and not
// work.
type Problem struct {
	What  string // what is wrong
	Fix   string // what to do about it
	Fatal bool   // the kubelet would end the process; otherwise it only works less well
}

func (p Problem) String() string { return p.What + "; " + p.Fix }

// Fatal picks the problems that keep a kubelet from starting, as one error.
func Fatal(problems []Problem) error {
	var errs []error
	for _, p := range problems {
		if p.Fatal {
			errs = append(errs, errors.New(p.String()))
		}
	}
	return errors.Join(errs...)
}

// Preflight checks the host for what the kubelet would end the process over. It
// starts nothing and leaves nothing behind but the directories it makes.
// containerd need not run yet.
func Preflight(cfg Config) []Problem {
	if err := cfg.Validate(); err != nil {
		return []Problem{{What: err.Error(), Fix: "correct the settings", Fatal: true}}
	}
	if os.Geteuid() != 0 {
		return []Problem{{What: fmt.Sprintf("running as user %d", os.Geteuid()), Fix: "run as root", Fatal: true}}
	}
	var found []Problem
	if _, err := newServer(&cfg); err != nil {
		found = append(found, Problem{What: err.Error(), Fix: "correct --kubelet-arg", Fatal: true})
	}
	found = append(found, checkPort(cfg.Listen)...)
	found = append(found, checkDirs(&cfg)...)
	found = append(found, checkStateFiles(cfg.RootDir)...)
	found = append(found, checkCgroups(procMountInfo, cfg.CgroupRoot)...)
	found = append(found, checkSysctls()...)
	found = append(found, checkCredentials(&cfg)...)
	found = append(found, checkAddresses(cfg.NodeIPs)...)
	if _, err := os.Stat(cfg.ResolvConf); err != nil {
		found = append(found, Problem{
			What: fmt.Sprintf("resolver configuration cannot be read (%v): no pod could start", err),
			Fix:  "create the file", Fatal: true,
		})
	}
	return found
}

func checkPort(listen netip.AddrPort) []Problem {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(listen))
	if err != nil {
		return []Problem{{
			What: fmt.Sprintf("kubelet port %d cannot be used (%v)", listen.Port(), err),
			Fix:  "stop what listens there, another kubelet perhaps (ss -ltnp)", Fatal: true,
		}}
	}
	_ = l.Close()
	return nil
}

// maxSocketPath is the length of a unix socket's path that the kernel takes.
const maxSocketPath = 107

func checkDirs(cfg *Config) []Problem {
	var found []Problem
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{
		{cfg.RootDir, 0o750},
		{cfg.PodLogsDir, 0o755},
		{"/var/log/containers", 0o755},
		{"/var/lib/kubelet/device-plugins", 0o750}, // upstream has this path built in
		{filepath.Join(cfg.RootDir, "pod-resources"), 0o750},
		{filepath.Join(cfg.RootDir, "plugins_registry"), 0o750},
	} {
		if err := probeDir(dir.path, dir.mode); err != nil {
			found = append(found, Problem{
				What: fmt.Sprintf("directory %s cannot be written (%v)", dir.path, err),
				Fix:  "free space on that disk, or remount it writable", Fatal: true,
			})
		}
	}
	if socket := filepath.Join(cfg.RootDir, "pod-resources", "kubelet.sock"); len(socket) > maxSocketPath {
		found = append(found, Problem{
			What: fmt.Sprintf("kubelet directory %s is too deep for its sockets (%d characters, at most %d)", cfg.RootDir, len(socket), maxSocketPath),
			Fix:  "choose a shorter path", Fatal: true,
		})
	}
	return found
}

// probeDir makes dir if need be and writes a byte into it: a full disk lets a
// file be created and nothing put into it.
func probeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".moot-probe-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // only a probe
	_, err = f.Write([]byte{0})
	return errors.Join(err, f.Close())
}

// checkAddresses looks for the node's addresses on this host: the kubelet never
// gets ready with one that is not there. It may still come: a node that boots
// with no network is given its address before the kubelet starts.
func checkAddresses(want []netip.Addr) []Problem {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return []Problem{{What: fmt.Sprintf("interface addresses cannot be listed (%v)", err), Fix: "mount /proc and /sys", Fatal: true}}
	}
	have := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			have = append(have, p.Addr().Unmap())
		}
	}
	var found []Problem
	for _, ip := range want {
		if !slices.Contains(have, ip.Unmap()) {
			found = append(found, Problem{
				What: fmt.Sprintf("no interface has the node's address %s", ip),
				Fix:  "set --node-ip to an address of this machine, unless it has no network just now",
			})
		}
	}
	return found
}

func checkCredentials(cfg *Config) []Problem {
	const fix = "remove the file and start again: it is issued anew"
	var found []Problem
	if _, err := tls.LoadX509KeyPair(cfg.ServingCert, cfg.ServingKey); err != nil {
		found = append(found, Problem{What: fmt.Sprintf("kubelet serving certificate cannot be used (%v)", err), Fix: fix, Fatal: true})
	}
	if pem, err := os.ReadFile(cfg.ClientCA); err != nil {
		found = append(found, Problem{What: fmt.Sprintf("client CA cannot be read (%v)", err), Fix: "restore it from another member", Fatal: true})
	} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		found = append(found, Problem{What: fmt.Sprintf("client CA %s holds no certificate", cfg.ClientCA), Fix: "restore it from another member", Fatal: true})
	}
	if _, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig); err != nil {
		found = append(found, Problem{What: fmt.Sprintf("kubelet kubeconfig cannot be used (%v)", err), Fix: fix, Fatal: true})
	}
	return found
}

// Sysctls lists the host settings the kubelet changes when it starts, as paths
// below /proc/sys, with the values it wants. A testbed saves and restores them.
func Sysctls() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

// checkSysctls looks for settings that are not as the kubelet wants them and
// that it could not change.
func checkSysctls() []Problem {
	var found []Problem
	for name, want := range Sysctls() {
		path := filepath.Join("/proc/sys", name)
		raw, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(raw)) == want {
			continue
		}
		if err == nil {
			err = unix.Access(path, unix.W_OK)
		}
		if err != nil {
			found = append(found, Problem{
				What: fmt.Sprintf("sysctl %s is not %s and cannot be set (%v)", strings.ReplaceAll(name, "/", "."), want, err),
				Fix:  "set it on the host: sysctl -w " + strings.ReplaceAll(name, "/", ".") + "=" + want, Fatal: true,
			})
		}
	}
	slices.SortFunc(found, func(a, b Problem) int { return strings.Compare(a.What, b.What) })
	return found
}
