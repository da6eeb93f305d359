package ebpf

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// A program that a device's driver runs on each packet before the kernel makes a
// buffer of it sends on what only has to be translated, of connections that the
// tc programs have made. Without it they do the same.

const xdpProgram = "moot_uplink_xdp"

// loadXDP loads the program onto the maps of the tc programs, or with none onto
// some of its own of one entry.
func loadXDP(shared map[string]*ebpf.Map) (*ebpf.Program, error) {
	spec, err := loadPacket()
	if err != nil {
		return nil, fmt.Errorf("read packet programs: %w", err)
	}
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return name != xdpProgram })
	replace := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		m.MaxEntries = 1
		if s := shared[name]; s != nil {
			replace[name] = s
		}
	}
	coll, err := load("XDP program", spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(xdpProgram), nil
}

// attachXDP attaches the program to the uplinks of hooks whose drivers run it,
// and returns where it is.
func (p *packets) attachXDP(hooks []hook) ([]hook, error) {
	if p.xdp == nil {
		return nil, nil
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var attached []hook
	for _, h := range hooks {
		if h.program != "moot_uplink_in" {
			continue
		}
		h.program = xdpProgram
		err := p.unfit(h.device, all)
		if err == nil {
			err = p.attachLink(h, p.xdp, func() (link.Link, error) { // a program not in the driver's place takes longer than none
				return link.AttachXDP(link.XDPOptions{Program: p.xdp, Interface: h.device.Attrs().Index, Flags: link.XDPDriverMode})
			})
		}
		index, why := h.device.Attrs().Index, ""
		if err == nil {
			attached = append(attached, h)
		} else {
			why = err.Error()
		}
		if why != p.refused[index] {
			p.log.Warn("packets are not led on by the driver", "device", h.device.Attrs().Name, "err", err)
		}
		p.refused[index] = why
	}
	return attached, nil
}

// unfit says why packets of the device may not be what the program takes them
// for.
func unfit(dev netlink.Link, all []netlink.Link) error {
	switch kind := dev.Type(); kind {
	case "veth", "tuntap", "tun":
		return fmt.Errorf("packets of a %s device may lack their checksums", kind)
	case "bond", "team":
		return fmt.Errorf("packets of a %s device come by the devices below it", kind)
	}
	if dev.Attrs().ParentDevBus == "xen" {
		return errors.New("packets of a Xen neighbor may lack their checksums")
	}
	for _, l := range all {
		// Its driver takes the tag off, and the program cannot see whose a packet is.
		if l.Type() == "vlan" && l.Attrs().ParentIndex == dev.Attrs().Index {
			return errors.New("packets of the VLAN device " + l.Attrs().Name + " come by it")
		}
	}
	return nil
}
