package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
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
	service struct{ ID, Set, Slots, Affinity, Flags uint32 }
	slotKey struct{ Set, Index uint32 }
	backend struct {
		Addr  [16]byte
		Port  [2]byte
		Flags uint16
	}
	memberKey struct {
		ID   uint32
		Addr [16]byte
		Port [2]byte
		_    uint16
	}
	originKey struct {
		Cookie uint64
		Addr   [16]byte
		Port   [2]byte
		Proto  uint8
		_      [5]byte
	}
	origin struct {
		Addr [16]byte
		Port [2]byte
		_    uint16
	}
	sourceKey struct {
		Bits, ID uint32
		Addr     [16]byte
	}
)

const (
	serviceDrop    = 1 << 0
	serviceSources = 1 << 1
	backendLocal   = 1 << 0
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

func memberOf(id uint32, b Backend) memberKey {
	return memberKey{ID: id, Addr: b.Addr.Addr().As16(), Port: order(b.Addr.Port())}
}

func sourceOf(id uint32, p netip.Prefix) sourceKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return sourceKey{Bits: uint32(32 + bits), ID: id, Addr: p.Masked().Addr().As16()} //nolint:gosec // at most 160
}

// slotsOf returns the slots of the frontend: one a backend, or for packets from
// outside a Maglev table.
func slotsOf(f Frontend, s Service) []backend {
	var out []backend
	if f.Side == Outside {
		for _, i := range maglev(s.Backends) {
			out = append(out, slotOf(s.Backends[i]))
		}
		return out
	}
	for _, b := range s.Backends {
		out = append(out, slotOf(b))
	}
	return out
}

func affinitySeconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d+time.Second-1)/time.Second, 1<<31)) //nolint:gosec // bounded
}

// full says in words what the kernel answers when a map has no room.
func full(err error) error {
	if errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the map is full: %w", err)
	}
	return err
}

// deleteAll deletes what is there of the keys.
func deleteAll[K any](m *ebpf.Map, keys []K) error {
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
