package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/mootkube/moot/ebpf"
	"github.com/mootkube/moot/node/net/balance"
)

// plane is a data plane with what the providers of upstream do not have.
type plane struct {
	proxy.Provider
	ready <-chan struct{}                 // closed when what the provider was told is served
	run   func(ctx context.Context) error // until ctx ends
	lost  func([]lostEndpoint)            // told of endpoints on nodes that are not heard from; may be nil
	close func()
}

// kubePlane serves by a provider of upstream, whose loop cannot be stopped.
func kubePlane(provider proxy.Provider) *plane {
	ready := make(chan struct{})
	close(ready) // it writes its rules before it returns from being told that it was told all
	p := &plane{Provider: provider, ready: ready, close: func() {}}
	p.run = func(ctx context.Context) error {
		go provider.SyncLoop()
		<-ctx.Done()
		return nil
	}
	return p
}

// openBalancer opens the eBPF data plane.
func (p *Proxy) openBalancer(recorder events.EventRecorder) (*plane, error) {
	cgroup, err := cgroupV2()
	if err != nil {
		return nil, fmt.Errorf("mode %s: %w", EBPF, err)
	}
	if err := mountBPF(filepath.Dir(p.cfg.Pins)); err != nil {
		return nil, fmt.Errorf("mode %s: %w", EBPF, err)
	}
	kernel, err := ebpf.Open(ebpf.Config{Cgroup: cgroup, Pins: p.cfg.Pins, NoTCX: p.cfg.NoTCX, XDP: p.cfg.XDP, Log: p.cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("mode %s: %w", EBPF, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	proxier, err := balance.New(balance.Config{
		NodeName: p.cfg.NodeName, NodeIPs: p.cfg.NodeIPs, Overlay: p.cfg.Overlay, Homes: p.cfg.Homes,
		Recorder: recorder, Speaks: p.cfg.Speaks, Log: p.cfg.Log,
	}, kernel)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mode %s: %w", EBPF, err), kernel.Close())
	}
	p.balancer = proxier
	return &plane{
		Provider: proxier, ready: proxier.Ready(), run: proxier.Run,
		lost: func(gone []lostEndpoint) { proxier.Disconnect(targets(gone)) },
		close: func() {
			p.mu.Lock()
			p.balancer = nil
			p.mu.Unlock()
			if err := kernel.Close(); err != nil {
				p.cfg.Log.Warn("the eBPF data plane was not closed cleanly", "err", err)
			}
		},
	}, nil
}

func targets(gone []lostEndpoint) []ebpf.Target {
	var out []ebpf.Target
	for _, e := range gone {
		switch {
		case e.protocol == "TCP":
			out = append(out, ebpf.Target{Addr: e.addr, Protocol: ebpf.TCP, Opening: e.suspect})
		case e.protocol == "UDP" && !e.suspect: // nothing opens
			out = append(out, ebpf.Target{Addr: e.addr, Protocol: ebpf.UDP})
		}
	}
	return out
}

// cgroupV2 finds where cgroup v2 is mounted, as the only hierarchy or beside
// those of version 1; all processes of the node are below.
func cgroupV2() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	best := ""
	for line := range strings.Lines(string(mounts)) {
		left, right, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(kind) < 1 || kind[0] != "cgroup2" {
			continue
		}
		if best == "" || len(fields[4]) < len(best) {
			best = fields[4]
		}
	}
	if best == "" {
		return "", errors.New("find cgroup v2: it is not mounted; mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return best, nil
}

// CheckMounts says what the eBPF data plane needs of the host's file systems and
// lacks. It changes nothing.
func CheckMounts() error {
	_, err := cgroupV2()
	if _, statErr := os.Stat("/sys/fs/bpf"); statErr != nil {
		err = errors.Join(err, fmt.Errorf("find bpffs: %w", statErr))
	}
	return err
}

// mountBPF makes sure that pins can be kept below dir, as systemd does at boot.
func mountBPF(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("find bpffs: %w", err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}
