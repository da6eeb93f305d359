// Package ebpf is the kernel data plane: it balances Services with no chain of
// rules, for sockets of the node when they connect or send (bpf/sock.c), and for
// packets from elsewhere at the devices (bpf/packet.c). What is to be served
// comes in as plain data by [Balancer.Apply] and [Balancer.Resync] and lies in
// maps; the programs choose. [Probe] tells whether the kernel can.
//
// It owns no goroutine. Programs, maps and links are pinned: they go on without
// the daemon, and the next one adopts them. It refuses to guess: a feature that
// could not be probed is reported with the reason, and a map without room is an
// error, not a Service half served.
package ebpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// Feature is one thing the data plane wants of the kernel.
type Feature struct {
	Name     string
	Required bool   // without it kube-proxy has to serve
	Why      string // what it is for
	Err      error  // nil when the kernel has it; else why it is unusable
}

// Probe asks the running kernel for each feature. It needs root and takes some
// tenths of a second.
func Probe() []Feature {
	return []Feature{
		{"Moot's programs", true, "the kernel's verifier has the last word", probePrograms()},
		{"BTF", false, "functions of the kernel's that programs may call", probeBTF()},
		{"cgroup sock_addr", true, "Service addresses are chosen when a socket connects", features.HaveProgramType(ebpf.CGroupSockAddr)},
		{"tc classifier", true, "NodePort traffic from outside", features.HaveProgramType(ebpf.SchedCLS)},
		{"XDP", false, "NodePort traffic from outside in the network driver, with --service-xdp", probeXDP()},
		{"LRU hash map", true, "connection tracking", features.HaveMapType(ebpf.LRUHash)},
		{"bpf_sock_destroy", false, "sockets to dead backends are destroyed in one pass (6.5)", probeKfunc("bpf_sock_destroy")},
	}
}

// probePrograms loads what [Open] loads, with maps of its own.
func probePrograms() error {
	if _, err := netnsCookie(); err != nil {
		return err
	}
	for _, read := range []func() (*ebpf.CollectionSpec, error){loadSock, loadPacket} {
		spec, err := read()
		if err != nil {
			return fmt.Errorf("read programs: %w", err)
		}
		delete(spec.Programs, xdpProgram)
		for _, m := range spec.Maps {
			m.MaxEntries = 1
		}
		coll, err := ebpf.NewCollection(spec)
		if err != nil {
			return fmt.Errorf("load programs: %w", err)
		}
		coll.Close()
	}
	return nil
}

func probeXDP() error {
	prog, err := loadXDP(nil)
	_ = prog.Close()
	return err
}

func probeBTF() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("no kernel type information: %w", err)
	}
	return nil
}

func probeKfunc(name string) error {
	defer btf.FlushKernelSpec() // 40 MB that the package would keep
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("load kernel type information: %w", err)
	}
	var fn *btf.Func
	if err := spec.TypeByName(name, &fn); err != nil {
		if errors.Is(err, btf.ErrNotFound) {
			return errors.New("not in this kernel")
		}
		return fmt.Errorf("look up %s: %w", name, err)
	}
	return nil
}
