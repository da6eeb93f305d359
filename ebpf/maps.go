package ebpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
)

// The layouts of bpf/maps.h.
type (
	frontendKey struct {
		Addr  [16]byte
		Port  [2]byte // in network order, as all ports
		Proto uint8
		Side  uint8
	}
	service       struct{ ID, Set, Slots, Affinity, Flags uint32 }
	frontendValue struct {
		Service service
		Near    [near]backend
	}
	slotKey struct{ Set, Index uint32 }
	backend struct {
		Addr  [16]byte
		Port  [2]byte
		Flags uint16
	}
	table     [tablePart]uint16
	memberKey struct {
		ID   uint32
		Addr [16]byte
		Port [2]byte
		Pad  uint16 // named, or each entry is encoded by reflection
	}
	originKey struct {
		Cookie uint64
		Addr   [16]byte
		Port   [2]byte
		Proto  uint8
		Pad    [5]byte
	}
	origin struct {
		Addr [16]byte
		Port [2]byte
		Pad  uint16
	}
	affinityKey struct {
		Client  [16]byte
		ID, Pad uint32
	}
	affinity struct {
		Addr [16]byte
		Port [2]byte
		Pad  [3]uint16
		Seen uint64 // CLOCK_MONOTONIC, in nanoseconds
	}
	sourceKey struct {
		Bits, ID uint32
		Addr     [16]byte
	}
)

const (
	serviceDrop    = 1 << 0
	serviceSources = 1 << 1
	serviceNear    = 1 << 2
	backendLocal   = 1 << 0
	backendDrains  = 1 << 1

	near      = 4   // NEAR
	tablePart = 224 // TABLE_PART
)

func order(port uint16) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], port)
	return b
}

func keyOf(f Frontend) frontendKey {
	return frontendKey{f.Addr.Addr().As16(), order(f.Addr.Port()), uint8(f.Protocol), uint8(f.Side)}
}

func slotOf(b Backend) backend {
	out := backend{Addr: b.Addr.Addr().As16(), Port: order(b.Addr.Port())}
	if b.Local {
		out.Flags = backendLocal
	}
	return out
}

func sourceOf(id uint32, p netip.Prefix) sourceKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return sourceKey{Bits: uint32(32 + bits), ID: id, Addr: p.Masked().Addr().As16()} //nolint:gosec // at most 160
}

// valueOf returns what lies under the frontend's key: the slots too if they are few.
func valueOf(s service, slots []backend) frontendValue {
	value := frontendValue{Service: s}
	if s.Flags&serviceNear != 0 {
		copy(value.Near[:], slots)
	}
	return value
}

// slots returns those that lie in the frontend.
func (v *frontendValue) slots() []backend {
	n := slices.IndexFunc(v.Near[:], func(b backend) bool { return b.Port == [2]byte{} })
	if n < 0 {
		n = near
	}
	return v.Near[:n:n]
}

// slotsOf returns a slot for each backend, in one order however they come.
func slotsOf(s Service) []backend {
	out := make([]backend, 0, len(s.Backends))
	for _, b := range s.Backends {
		out = append(out, slotOf(b))
	}
	return distinct(out)
}

// drainingOf returns a slot for each backend of a frontend that drains and is not
// among its slots, which are sorted.
func drainingOf(f Frontend, s Service, slots []backend) []backend {
	if f.Protocol != UDP || f.Side != Outside {
		return nil
	}
	var out []backend
	for _, b := range s.Draining {
		to := slotOf(b)
		to.Flags |= backendDrains
		if _, takes := slices.BinarySearchFunc(slots, to, byAddress); !takes {
			out = append(out, to)
		}
	}
	return distinct(out)
}

func byAddress(a, b backend) int {
	return cmp.Or(bytes.Compare(a.Addr[:], b.Addr[:]), bytes.Compare(a.Port[:], b.Port[:]))
}

// distinct sorts the slots and leaves one of each address.
func distinct(slots []backend) []backend {
	slices.SortFunc(slots, func(a, b backend) int {
		return cmp.Or(byAddress(a, b), cmp.Compare(a.Flags, b.Flags))
	})
	return slices.CompactFunc(slots, func(a, b backend) bool { return byAddress(a, b) == 0 })
}

// tableOf returns the Maglev table of the slots in parts, and its size. One
// backend needs no table.
func tableOf(slots []backend) ([]table, uint32) {
	if len(slots) <= 1 {
		return nil, uint32(len(slots))
	}
	backends := make([]Backend, len(slots))
	for i, s := range slots {
		backends[i].Addr = netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), binary.BigEndian.Uint16(s.Port[:]))
	}
	taken := maglev(backends)
	parts := make([]table, (len(taken)+tablePart-1)/tablePart)
	for i, slot := range taken {
		parts[i/tablePart][i%tablePart] = uint16(slot) //nolint:gosec // a table has no more than 65521 slots, for as many backends
	}
	return parts, uint32(len(taken)) //nolint:gosec // bounded likewise
}

func affinitySeconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d+time.Second-1)/time.Second, 1<<31)) //nolint:gosec // bounded
}

// full says in words what the kernel answers when a map has no room.
func full(m *ebpf.Map, err error) error {
	if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the map is full: %s has room for %d entries: %w", m, m.MaxEntries(), err)
	}
	return err
}

// maxBatch bounds what one call to the kernel writes or deletes.
const maxBatch = 4096

// putAll writes the entries, many by one call where the kernel can (5.6).
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for len(keys) > 1 {
		n := min(len(keys), maxBatch)
		if _, err := m.BatchUpdate(keys[:n], values[:n], nil); errors.Is(err, ebpf.ErrNotSupported) {
			break
		} else if err != nil {
			return full(m, err)
		}
		keys, values = keys[n:], values[n:]
	}
	for i, key := range keys {
		if err := m.Put(key, values[i]); err != nil {
			return full(m, err)
		}
	}
	return nil
}

// deleteAll deletes what is there of the keys.
func deleteAll[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 1 {
		n := min(len(keys), maxBatch)
		done, err := m.BatchDelete(keys[:n], nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			break
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n, err = done+1, nil // it stopped at the one that is not there
		}
		if err != nil {
			return fmt.Errorf("delete from map: %w", err)
		}
		keys = keys[n:]
	}
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map: %w", err)
		}
	}
	return nil
}

// list reads all of a map that only this process writes.
func list[K, V any](m *ebpf.Map, each func(K, V)) error {
	var key K
	var value V
	it := m.Iterate()
	for it.Next(&key, &value) {
		each(key, value)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list map: %w", err)
	}
	return nil
}
