package ebpf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// found is what the maps hold of a frontend besides its service.
type found struct {
	*entry
	slots   []backend
	sources []sourceKey
}

// adopt reads what the maps hold, and deletes what no frontend uses: a process
// that ended between two writes leaves such.
func (b *Balancer) adopt() error {
	byID, bySet := map[uint32]*found{}, map[uint32]*found{}
	err := list(b.coll.Maps["moot_services"], func(key frontendKey, value frontendValue) {
		svc := value.Service
		e := &entry{service: svc}
		f := &found{entry: e}
		if svc.Flags&serviceNear != 0 {
			f.slots = value.slots()
		}
		b.held[key], byID[svc.ID], bySet[svc.Set] = e, f, f
		b.next = max(b.next, svc.ID+1, svc.Set+1)
	})
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	var rest remains
	err = errors.Join(
		list(b.coll.Maps["moot_slots"], func(key slotKey, to backend) {
			b.next = max(b.next, key.Set+1)
			if f := bySet[key.Set]; f != nil {
				f.slots = append(f.slots, to)
				f.entry.slots++
			} else {
				rest.slots = append(rest.slots, key)
			}
		}),
		list(b.coll.Maps["moot_tables"], func(key slotKey, part table) {
			b.next = max(b.next, key.Set+1)
			if f := bySet[key.Set]; f != nil {
				f.table += b.sumPart(key.Index, part)
				f.parts++
			} else {
				rest.tables = append(rest.tables, key)
			}
		}),
		list(b.coll.Maps["moot_members"], func(key memberKey, flags uint8) {
			b.next = max(b.next, key.ID+1)
			if f := byID[key.ID]; f != nil {
				if f.members == nil {
					f.members = map[memberKey]uint8{}
				}
				f.members[key] = flags
			} else {
				rest.members = append(rest.members, key)
			}
		}),
		list(b.coll.Maps["moot_sources"], func(key sourceKey, _ uint8) {
			b.next = max(b.next, key.ID+1)
			if f := byID[key.ID]; f != nil {
				if f.entry.sources == nil {
					f.entry.sources = map[sourceKey]bool{}
				}
				f.entry.sources[key] = true
				key.ID = 0
				f.sources = append(f.sources, key)
			} else {
				rest.sources = append(rest.sources, key)
			}
		}),
	)
	if err != nil {
		return fmt.Errorf("adopt maps: %w", err)
	}
	for key, e := range b.held {
		b.recognize(key, bySet[e.service.Set])
	}
	return b.clear(&rest)
}

// recognize gives the entry the digest that it would have been written with, if
// what was found is whole.
func (b *Balancer) recognize(key frontendKey, f *found) {
	slots := distinct(f.slots)
	members := hasMembers(key, f.service)
	size := len(slots)
	if Side(key.Side) == Outside {
		size = maglevSize(size)
	}
	apart := len(slots)
	if f.service.Flags&serviceNear != 0 {
		apart = 0
	}
	var draining []backend
	for m, flags := range f.members {
		if flags&backendDrains != 0 {
			draining = append(draining, backend{Addr: m.Addr, Port: m.Port, Flags: uint16(flags)})
		}
	}
	if apart != int(f.entry.slots) || size != int(f.service.Slots) || (size != len(slots)) != (f.parts > 0) ||
		!members && len(f.members) > 0 || members && len(f.members) != len(slots)+len(draining) {
		return
	}
	for _, to := range slots {
		flags, is := f.members[memberKey{ID: f.service.ID, Addr: to.Addr, Port: to.Port}]
		if members && (!is || flags != uint8(to.Flags)) { //nolint:gosec // one bit
			return
		}
	}
	slices.SortFunc(f.sources, func(a, b sourceKey) int {
		return cmp.Or(cmp.Compare(a.Bits, b.Bits), bytes.Compare(a.Addr[:], b.Addr[:]))
	})
	f.digest = b.digest(f.service, slots, distinct(draining), members, f.sources)
}
