package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cc clang -strip llvm-strip -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" packet bpf/packet.c

// packets are the programs for packets from outside the node. Its own maps, and
// the links that attach the programs to devices, are pinned and outlive it.
type packets struct {
	pins  string
	noTCX bool
	log   *slog.Logger
	coll  *ebpf.Collection

	xdp     *ebpf.Program // nil: not to be attached
	unfit   func(dev netlink.Link, all []netlink.Link) error
	refused map[int]string // why xdp is not at a device, by its index
}

// ownMaps are those that no other program shares.
var ownMaps = [...]string{"moot_flows", "moot_fragments", "moot_devices"}

// packetSpec is what the packet programs are loaded from.
func packetSpec(pins string) (*ebpf.CollectionSpec, error) {
	spec, err := loadPacket()
	if err != nil {
		return nil, fmt.Errorf("read packet programs: %w", err)
	}
	for _, name := range ownMaps {
		spec.Maps[name].Pinning = ebpf.PinByName
	}
	delete(spec.Programs, xdpProgram) // a kernel that refuses it can have the others
	return spec, setSizes(spec, pins)
}

// openPackets loads the programs onto the shared maps, by name, and its own
// maps, pinned in the directory for pins, which are adopted if their layout is the
// same: then the connections of the programs before go on.
func openPackets(cfg Config, shared map[string]*ebpf.Map) (*packets, error) {
	pins, log := cfg.Pins, cfg.Log
	spec, err := packetSpec(pins)
	if err != nil {
		return nil, err
	}
	replace := map[string]*ebpf.Map{}
	for name, m := range shared {
		if _, used := spec.Maps[name]; used {
			replace[name] = m
		}
	}
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}, MapReplacements: replace}
	coll, err := load("packet programs", spec, opts)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		log.Warn("open connections from outside are forgotten: their layout is another", "err", err)
		for _, name := range ownMaps {
			if err := os.Remove(filepath.Join(pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("remove map of another layout: %w", err)
			}
		}
		if spec, err = packetSpec(pins); err != nil { // what is not pinned any more has no say in sizes
			return nil, err
		}
		coll, err = load("packet programs", spec, opts)
	}
	if err != nil {
		return nil, err
	}
	p := &packets{pins: pins, log: log, coll: coll, unfit: unfit, refused: map[int]string{}}
	p.noTCX = cfg.NoTCX || !haveTCX(coll.Programs["moot_uplink_in"])
	if cfg.XDP {
		if p.xdp, err = loadXDP(coll.Maps); err != nil {
			log.Warn("packets are not led on by drivers: the kernel refuses the program", "err", err)
		}
	}
	return p, nil
}

// haveTCX says whether the kernel has links for tc programs (6.6).
func haveTCX(prog *ebpf.Program) bool {
	// No device has this index. A kernel without tcx refuses before it looks.
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1 << 30, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		_ = l.Close()
	}
	return !errors.Is(err, link.ErrNotSupported)
}

// close leaves everything attached.
func (p *packets) close() {
	p.coll.Close()
	_ = p.xdp.Close()
}

// hook is one place where a program is attached.
type hook struct {
	device  netlink.Link
	egress  bool
	program string
}

const pinPrefix = "packet_"

func (h hook) pin() string {
	way := "in"
	switch {
	case h.program == xdpProgram:
		way = "xdp"
	case h.egress:
		way = "out"
	}
	return fmt.Sprintf("%s%d_%s", pinPrefix, h.device.Attrs().Index, way)
}

// setDevices attaches the programs to the devices and detaches them from all
// others. A program that is attached is replaced without a gap. It also reads
// the devices' addresses, from which the node speaks to backends elsewhere; it is
// to be called again when they change. A device must carry Ethernet frames. One that
// takes no program does not keep the others from theirs.
func (p *packets) setDevices(uplinks, overlay []string) error {
	hooks, sources, err := devices(uplinks, overlay)
	if err != nil {
		return err
	}
	if err := p.setSources(sources); err != nil {
		return err
	}
	attach, links, filters := attachFilter, []hook(nil), hooks
	if !p.noTCX {
		attach, links, filters = p.attachTCX, hooks, nil
	}
	var errs []error
	for _, h := range hooks {
		if err := attach(h, p.coll.Programs[h.program]); err != nil {
			errs = append(errs, fmt.Errorf("attach %s to %s: %w", h.program, h.device.Attrs().Name, err))
		}
	}
	fast, err := p.attachXDP(hooks)
	return errors.Join(append(errs, err, detachLinks(p.pins, append(fast, links...)), detachFilters(filters))...)
}

func devices(uplinks, overlay []string) ([]hook, map[uint32]device, error) {
	var hooks []hook
	sources := map[uint32]device{}
	var fallback device
	add := func(name string, overlay bool) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find device %s: %w", name, err)
		}
		if kind := l.Attrs().EncapType; kind != "ether" {
			return fmt.Errorf("device %s carries no Ethernet frames: %q", name, kind)
		}
		index := uint32(l.Attrs().Index)
		if _, twice := sources[index]; twice {
			return nil
		}
		dev, err := deviceOf(l)
		if err != nil {
			return err
		}
		fallback = fallback.or(dev)
		sources[index] = dev.or(fallback)
		if overlay {
			hooks = append(hooks, hook{l, false, "moot_overlay_in"})
			return nil
		}
		hooks = append(hooks, hook{l, false, "moot_uplink_in"}, hook{l, true, "moot_uplink_out"})
		return nil
	}
	for _, name := range uplinks {
		if err := add(name, false); err != nil {
			return nil, nil, err
		}
	}
	for _, name := range overlay {
		if err := add(name, true); err != nil {
			return nil, nil, err
		}
	}
	return hooks, sources, nil
}

func (p *packets) attachTCX(h hook, prog *ebpf.Program) error {
	index := h.device.Attrs().Index
	at := ebpf.AttachTCXIngress
	if h.egress {
		at = ebpf.AttachTCXEgress
	}
	return p.attachLink(h, prog, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: at})
	})
}

// attachLink replaces the program of the link that is pinned, or makes it.
func (p *packets) attachLink(h hook, prog *ebpf.Program, attach func() (link.Link, error)) error {
	path := filepath.Join(p.pins, h.pin())
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer func() { _ = old.Close() }()
		if info, err := old.Info(); err == nil && deviceIndex(info) == h.device.Attrs().Index {
			if err := old.Update(prog); err != nil {
				return fmt.Errorf("replace program: %w", err)
			}
			return nil
		}
		// Its device is gone and another has its index.
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("unpin link: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("load pinned link: %w", err)
	}
	l, err := attach()
	if err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pin link: %w", err), l.Close())
	}
	return l.Close()
}

// deviceIndex is 0 when the link's device is gone.
func deviceIndex(info *link.Info) int {
	if x := info.XDP(); x != nil {
		return int(x.Ifindex)
	}
	if x := info.TCX(); x != nil {
		return int(x.Ifindex)
	}
	return 0
}

// detachLinks detaches what is attached by links and not among keep.
func detachLinks(pins string, keep []hook) error {
	kept := map[string]bool{}
	for _, h := range keep {
		kept[h.pin()] = true
	}
	entries, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), pinPrefix) || kept[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(pins, e.Name())); err != nil {
			return fmt.Errorf("detach %s: %w", e.Name(), err)
		}
	}
	return nil
}

// removePackets detaches the programs from all devices of this network
// namespace and unpins their maps.
func removePackets(pins string) error {
	errs := []error{detachLinks(pins, nil), detachFilters(nil)}
	for _, name := range ownMaps {
		if err := os.Remove(filepath.Join(pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
