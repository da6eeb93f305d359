package ebpf

import (
	"errors"
	"fmt"
)

// entry is what the maps hold of a frontend.
type entry struct {
	service service
	members map[memberKey]bool
	sources map[sourceKey]bool
}

// adopt reads what the maps hold, and deletes what no frontend uses: a process
// that ended between two writes leaves such.
func (b *Balancer) adopt() error {
	byID, sets := map[uint32]*entry{}, map[uint32]bool{}
	err := list(b.coll.Maps["moot_services"], func(key frontendKey, svc service) {
		e := &entry{svc, map[memberKey]bool{}, map[sourceKey]bool{}}
		b.held[key], byID[svc.ID], sets[svc.Set] = e, e, true
		b.next = max(b.next, svc.ID+1, svc.Set+1)
	})
	if err != nil {
		return fmt.Errorf("adopt services: %w", err)
	}
	var slots []slotKey
	var members []memberKey
	var sources []sourceKey
	err = errors.Join(
		list(b.coll.Maps["moot_slots"], func(key slotKey, _ backend) {
			b.next = max(b.next, key.Set+1)
			if !sets[key.Set] {
				slots = append(slots, key)
			}
		}),
		list(b.coll.Maps["moot_members"], func(key memberKey, _ uint8) {
			b.next = max(b.next, key.ID+1)
			if e := byID[key.ID]; e != nil {
				e.members[key] = true
			} else {
				members = append(members, key)
			}
		}),
		list(b.coll.Maps["moot_sources"], func(key sourceKey, _ uint8) {
			b.next = max(b.next, key.ID+1)
			if e := byID[key.ID]; e != nil {
				e.sources[key] = true
			} else {
				sources = append(sources, key)
			}
		}),
	)
	if err != nil {
		return fmt.Errorf("adopt maps: %w", err)
	}
	return errors.Join(deleteAll(b.coll.Maps["moot_slots"], slots),
		deleteAll(b.coll.Maps["moot_members"], members), deleteAll(b.coll.Maps["moot_sources"], sources))
}

// Apply makes each frontend of set lead where it says and takes the frontends of
// gone away. Each switches at once from its old backends to its new. What could
// not be done is in the error, by frontend, and all else is done.
func (b *Balancer) Apply(set map[Frontend]Service, gone []Frontend) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, f := range gone {
		if err := b.drop(keyOf(f)); err != nil {
			errs = append(errs, fmt.Errorf("take away %s: %w", f, err))
		}
	}
	for f, s := range set {
		if err := b.set(f, s); err != nil {
			errs = append(errs, fmt.Errorf("set %s of %s: %w", f, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Resync makes the maps hold exactly want.
func (b *Balancer) Resync(want map[Frontend]Service) error {
	keep := map[frontendKey]bool{}
	for f := range want {
		keep[keyOf(f)] = true
	}
	b.mu.Lock()
	var errs []error
	for key := range b.held {
		if !keep[key] {
			errs = append(errs, b.drop(key))
		}
	}
	b.mu.Unlock()
	errs = append(errs, b.Apply(want, nil))
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.attached {
		errs = append(errs, b.attach())
	}
	return errors.Join(errs...)
}

// number returns a number that no frontend and no set has.
func (b *Balancer) number() uint32 {
	b.next++
	return b.next - 1
}

// set writes what is new, switches the frontend to it by one write, and deletes
// what was before.
func (b *Balancer) set(f Frontend, s Service) error {
	if err := valid(f, s); err != nil {
		return err
	}
	key, slots := keyOf(f), slotsOf(f, s)
	old, known := b.held[key]
	next := &entry{members: map[memberKey]bool{}, sources: map[sourceKey]bool{}}
	next.service = service{Set: b.number(), Slots: uint32(len(slots)), Affinity: affinitySeconds(s.Affinity)} //nolint:gosec // bounded by memory
	if known {
		next.service.ID = old.service.ID
	} else {
		next.service.ID = b.number()
		old = &entry{}
	}
	if s.Drop {
		next.service.Flags |= serviceDrop
	}
	if err := b.write(next, s, slots); err != nil {
		// Nothing leads there yet.
		return errors.Join(err, b.clear(next, old))
	}
	if err := b.coll.Maps["moot_services"].Put(key, next.service); err != nil {
		return errors.Join(fmt.Errorf("write service: %w", full(err)), b.clear(next, old))
	}
	b.held[key] = next
	return b.clear(old, next)
}

func (b *Balancer) write(e *entry, s Service, slots []backend) error {
	for i, slot := range slots {
		if err := b.coll.Maps["moot_slots"].Put(slotKey{e.service.Set, uint32(i)}, slot); err != nil { //nolint:gosec // an index
			return fmt.Errorf("write slots: %w", full(err))
		}
	}
	if e.service.Affinity != 0 {
		for _, to := range s.Backends {
			key := memberOf(e.service.ID, to)
			e.members[key] = true
			if err := b.coll.Maps["moot_members"].Put(key, uint8(slotOf(to).Flags)); err != nil { //nolint:gosec // one bit
				return fmt.Errorf("write members: %w", full(err))
			}
		}
	}
	for _, p := range s.Sources {
		e.service.Flags |= serviceSources
		key := sourceOf(e.service.ID, p)
		e.sources[key] = true
		if err := b.coll.Maps["moot_sources"].Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write sources: %w", full(err))
		}
	}
	return nil
}

// clear deletes what the maps hold of e and not of keep.
func (b *Balancer) clear(e, keep *entry) error {
	var slots []slotKey
	var members []memberKey
	var sources []sourceKey
	for i := range e.service.Slots {
		slots = append(slots, slotKey{e.service.Set, i})
	}
	for key := range e.members {
		if !keep.members[key] {
			members = append(members, key)
		}
	}
	for key := range e.sources {
		if !keep.sources[key] {
			sources = append(sources, key)
		}
	}
	return errors.Join(deleteAll(b.coll.Maps["moot_slots"], slots),
		deleteAll(b.coll.Maps["moot_members"], members), deleteAll(b.coll.Maps["moot_sources"], sources))
}

func (b *Balancer) drop(key frontendKey) error {
	e, known := b.held[key]
	if !known {
		return nil
	}
	if err := deleteAll(b.coll.Maps["moot_services"], []frontendKey{key}); err != nil {
		return err
	}
	delete(b.held, key)
	return b.clear(e, &entry{})
}
