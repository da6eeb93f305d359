package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 attach tc programs as filters of a clsact qdisc. They are
// kept by the device, without a pin.

const (
	filterPrefix   = "moot_"
	filterPriority = 49
	filterHandle   = 1
)

func (h hook) parent() uint32 {
	if h.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// attachFilter adds the program to the device or replaces it in place.
func attachFilter(h hook, prog *ebpf.Program) error {
	index := h.device.Attrs().Index
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	})
	if errors.Is(err, os.ErrExist) {
		err = noIngress(h.device)
	}
	if err != nil {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	err = netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: h.parent(), Handle: filterHandle,
			Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: prog.FD(), Name: h.program, DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	return nil
}

// noIngress refuses a device with the older kind of qdisc, in whose only place the
// program for what leaves would take that of the one for what comes in.
func noIngress(device netlink.Link) error {
	qdiscs, err := netlink.QdiscList(device)
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		if q.Type() == "ingress" {
			return errors.New("there is an ingress qdisc, which somebody else made")
		}
	}
	return nil
}

// detachFilters removes our filters that are not among keep from every device,
// and a clsact qdisc that is left empty.
func detachFilters(keep []hook) error {
	type place struct {
		index  int
		parent uint32
	}
	kept := map[place]bool{}
	for _, h := range keep {
		kept[place{h.device.Attrs().Index, h.parent()}] = true
	}
	qdiscs, err := netlink.QdiscList(nil)
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		l, err := netlink.LinkByIndex(q.Attrs().LinkIndex)
		if err != nil {
			continue // it is gone, and the qdisc with it
		}
		left, removed := 0, 0
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := netlink.FilterList(l, parent)
			if err != nil {
				return fmt.Errorf("list filters of %s: %w", l.Attrs().Name, err)
			}
			for _, f := range filters {
				b, ours := f.(*netlink.BpfFilter)
				if !ours || !strings.HasPrefix(b.Name, filterPrefix) || kept[place{l.Attrs().Index, parent}] {
					left++
					continue
				}
				if err := netlink.FilterDel(f); err != nil {
					return fmt.Errorf("remove filter of %s: %w", l.Attrs().Name, err)
				}
				removed++
			}
		}
		if left == 0 && removed > 0 {
			if err := netlink.QdiscDel(q); err != nil {
				return fmt.Errorf("remove qdisc of %s: %w", l.Attrs().Name, err)
			}
		}
	}
	return nil
}
