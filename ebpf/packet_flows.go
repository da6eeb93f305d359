package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowKey is struct flow_key of bpf/conntrack.h.
type flowKey struct {
	Src, Dst         [16]byte
	SrcPort, DstPort [2]byte // in network order
	Proto            uint8
	_                [3]byte
}

// flow is struct flow of bpf/conntrack.h.
type flow struct {
	Src, Dst         [16]byte
	SrcPort, DstPort [2]byte // in network order
	Ifindex          uint32
	Seen             uint64
	ID               uint32
	Flags            uint8
	State            uint8
	SYN              uint16
}

const (
	flowReply  = 1 << 0
	flowRemote = 1 << 1
	flowRefuse = 1 << 2
)

// reverse returns the key of the other entry of the connection.
func (k flowKey) reverse(f flow) flowKey {
	return flowKey{Src: f.Dst, Dst: f.Src, SrcPort: f.DstPort, DstPort: f.SrcPort, Proto: k.Proto}
}

// device is struct device of bpf/conntrack.h.
type device struct {
	IPv4, IPv6 [16]byte
}

// or returns d with what it lacks taken from other.
func (d device) or(other device) device {
	if d.IPv4 == [16]byte{} {
		d.IPv4 = other.IPv4
	}
	if d.IPv6 == [16]byte{} {
		d.IPv6 = other.IPv6
	}
	return d
}

// deviceOf reads the first lasting global address of each family.
func deviceOf(l netlink.Link) (device, error) {
	const passing = unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY | unix.IFA_F_DADFAILED
	var d device
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return d, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || !addr.IsGlobalUnicast() || a.Flags&passing != 0 {
			continue
		}
		addr = addr.Unmap()
		found := device{}
		if addr.Is4() {
			found.IPv4 = addr.As16()
		} else {
			found.IPv6 = addr.As16()
		}
		d = d.or(found)
	}
	return d, nil
}

// setSources makes the map of devices say exactly this.
func (p *packets) setSources(want map[uint32]device) error {
	m := p.coll.Maps["moot_devices"]
	for index, d := range want {
		if err := m.Put(index, d); err != nil {
			return fmt.Errorf("set addresses of device %d: %w", index, full(m, err))
		}
	}
	var gone []uint32
	var index uint32
	var d device
	for it := m.Iterate(); it.Next(&index, &d); {
		if _, ok := want[index]; !ok {
			gone = append(gone, index)
		}
	}
	for _, index := range gone {
		if err := m.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget device %d: %w", index, err)
		}
	}
	return nil
}

// forget ends the connections from outside to backends for which gone is true,
// and returns how many. A client that goes on with one is led to another backend,
// which resets it. The map may change meanwhile; connections that begin while it
// runs can be missed.
func (p *packets) forget(gone func(Protocol, netip.AddrPort) bool) (int, error) {
	m := p.coll.Maps["moot_flows"]
	var ends []flowKey
	var key flowKey
	var f flow
	count := 0
	it := m.Iterate()
	for it.Next(&key, &f) {
		backend, port := f.Dst, f.DstPort
		if f.Flags&flowReply != 0 {
			backend, port = key.Src, key.SrcPort
		}
		at := netip.AddrPortFrom(netip.AddrFrom16(backend).Unmap(), binary.BigEndian.Uint16(port[:]))
		if f.Flags&flowRefuse != 0 || !gone(Protocol(key.Proto), at) {
			continue
		}
		if f.Flags&flowReply == 0 {
			count++
		}
		ends = append(ends, key, key.reverse(f))
	}
	for _, key := range ends {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return count, fmt.Errorf("forget connection: %w", err)
		}
	}
	// It gives up when entries vanish under it too often; what was found is gone.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return count, fmt.Errorf("list connections: %w", err)
	}
	return count, nil
}
