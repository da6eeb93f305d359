package balance

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	hostSettle = 100 * time.Millisecond // changes within this time are handled as one
	hostResync = 30 * time.Second       // devices are compared at least this often
)

// hostKernel is the part of [ebpf.Balancer] that knows the host.
type hostKernel interface {
	SetAddresses(own []netip.Addr) error
	SetDevices(uplinks, overlay []string) error
}

// host is what the data plane has to know of this machine.
type host struct {
	own      []netip.Addr // on which NodePorts answer
	uplinks  []string     // devices that packets from elsewhere come in by
	overlay  []string     // devices of the pod network, those that are there
	speaks   []netip.Addr // the addresses of these, which come after them
	unserved []string     // devices with addresses that packets cannot be balanced on
	tagged   []int        // indexes of devices with VLAN devices on them, which say where drivers may lead packets on
}

func (h host) equal(o host) bool {
	return slices.Equal(h.own, o.own) && slices.Equal(h.uplinks, o.uplinks) &&
		slices.Equal(h.overlay, o.overlay) && slices.Equal(h.speaks, o.speaks) && slices.Equal(h.unserved, o.unserved) && slices.Equal(h.tagged, o.tagged)
}

// readHost looks at the machine's devices and addresses. A device that carries
// frames and has an address others can reach, of its own, is an uplink: the
// address on this side of pods' devices is the gateway's, which is on the
// loopback interface too.
func readHost(overlay []string) (host, error) {
	var h host
	links, err := netlink.LinkList()
	if err != nil {
		return h, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return h, fmt.Errorf("list addresses: %w", err)
	}
	loopback, on := map[netip.Addr]bool{}, map[int][]netip.Addr{}
	for _, addr := range addrs {
		ip, ok := netip.AddrFromSlice(addr.IP)
		if !ok || ip.IsLoopback() || ip.IsLinkLocalUnicast() || addr.Flags&unix.IFA_F_DADFAILED != 0 {
			continue
		}
		h.own = append(h.own, ip.Unmap())
		on[addr.LinkIndex] = append(on[addr.LinkIndex], ip.Unmap())
	}
	for _, l := range links {
		if l.Attrs().EncapType == "loopback" {
			for _, ip := range on[l.Attrs().Index] {
				loopback[ip] = true
			}
		}
	}
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "vlan" {
			h.tagged = append(h.tagged, a.ParentIndex)
		}
		if slices.Contains(overlay, a.Name) {
			h.overlay, h.speaks = append(h.overlay, a.Name), append(h.speaks, on[a.Index]...)
			continue
		}
		ownAddress := slices.ContainsFunc(on[a.Index], func(ip netip.Addr) bool { return !loopback[ip] })
		switch {
		case !ownAddress || a.EncapType == "loopback":
		case a.EncapType == "ether":
			h.uplinks = append(h.uplinks, a.Name)
		default:
			h.unserved = append(h.unserved, a.Name)
		}
	}
	slices.SortFunc(h.own, netip.Addr.Compare)
	h.own = slices.Compact(h.own)
	slices.Sort(h.tagged)
	for _, names := range [][]string{h.uplinks, h.overlay, h.unserved} {
		slices.Sort(names)
	}
	return h, nil
}

// watchHost keeps the kernel's side like the machine until ctx ends; ready is
// called whenever it has looked, also when not all could be set.
func watchHost(ctx context.Context, k hostKernel, overlay []string, log *slog.Logger, ready func()) error {
	trigger := make(chan struct{}, 1)
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	lost := func(err error) {
		if ctx.Err() == nil {
			log.Warn("changes of devices are not seen, comparing periodically", "err", err)
		}
	}
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("watch devices: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: lost}); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	poke := func() {
		select {
		case trigger <- struct{}{}:
		default:
		}
	}
	var both sync.WaitGroup
	both.Go(func() {
		for range links { // closed when ctx ends
			poke()
		}
	})
	both.Go(func() {
		for range addrs {
			poke()
		}
	})
	defer both.Wait()
	return keepHost(ctx, k, overlay, log, trigger, ready)
}

func keepHost(ctx context.Context, k hostKernel, overlay []string, log *slog.Logger, trigger <-chan struct{}, ready func()) error {
	var set host
	told, failed, pending := "", false, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-trigger:
			if !pending { // a steady stream of changes must not put it off for ever
				timer.Reset(hostSettle)
			}
			pending = true
			continue
		case <-timer.C:
			pending = false
		}
		now, err := readHost(overlay)
		if err == nil && (failed || !now.equal(set)) {
			if len(now.unserved) > 0 && !slices.Equal(now.unserved, set.unserved) {
				log.Warn("NodePorts and external addresses of Services do not answer on devices without Ethernet frames", "devices", now.unserved)
			}
			if err = k.SetAddresses(now.own); err == nil {
				err = k.SetDevices(now.uplinks, now.overlay)
			}
		}
		ready()
		failed = err != nil
		if err != nil {
			if told != err.Error() {
				log.Warn("Services may not answer from outside, trying again", "err", err)
			}
			told = err.Error()
			timer.Reset(retry)
			continue
		}
		set, told = now, ""
		timer.Reset(hostResync)
	}
}
