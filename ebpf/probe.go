// Package ebpf is the kernel data plane. So far it only tells what the kernel
// offers to one: `moot check` shows the answer, and the choice between the
// eBPF Service load balancer and kube-proxy will rest on it.
//
// It owns no goroutine, keeps no object in the kernel and refuses to guess: a
// feature that could not be probed is reported with the reason.
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

// Probe asks the running kernel for each feature. It needs CAP_BPF or root
// and takes some milliseconds.
func Probe() []Feature {
	return []Feature{
		{"BTF", true, "programs built once run on every kernel (CO-RE)", probeBTF()},
		{"cgroup sock_addr", true, "Service addresses are chosen when a socket connects", features.HaveProgramType(ebpf.CGroupSockAddr)},
		{"tc classifier", true, "NodePort traffic from outside", features.HaveProgramType(ebpf.SchedCLS)},
		{"XDP", false, "NodePort traffic from outside, faster", features.HaveProgramType(ebpf.XDP)},
		{"LRU hash map", true, "connection tracking", features.HaveMapType(ebpf.LRUHash)},
		{"bpf_sock_destroy", false, "sockets to dead backends are closed from the kernel (6.5)", probeKfunc("bpf_sock_destroy")},
	}
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
