package ebpf

import (
	"errors"
	"fmt"
	"slices"
)

// entry is what the maps hold of a frontend.
type entry struct {
	service service
	digest  uint64 // of all that is written for it; 0: not known
	slots   uint32 // how many lie in moot_slots
	parts   uint32 // and in moot_tables
	table   uint64 // of a table that was adopted and not compared yet: its sum
	members map[memberKey]uint8
	sources map[sourceKey]bool
}

// change is how one frontend comes from its old entry to its next.
type change struct {
	front     Frontend
	name      string
	key       frontendKey
	old, next *entry
	slots     []backend
	table     []table
}

// Apply makes each frontend of set lead where it says and takes the frontends of
// gone away. Each switches at once from its old backends to its new; one that
// leads there already costs no write. What could not be done is in the error, by
// frontend, and all else is done.
func (b *Balancer) Apply(set map[Frontend]Service, gone []Frontend) error {
	keys := make([]frontendKey, 0, len(gone))
	var errs []error
	for _, f := range gone {
		if err := f.valid(); err != nil {
			errs = append(errs, fmt.Errorf("take away: %w", err))
			continue
		}
		keys = append(keys, keyOf(f))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(append(errs, b.dropLocked(keys), b.setLocked(set))...)
}

// Resync makes the maps hold exactly want. It goes by what it wrote or adopted:
// it does not read them again.
func (b *Balancer) Resync(want map[Frontend]Service) error {
	keep := map[frontendKey]bool{}
	for f := range want {
		if f.valid() == nil { // else told below
			keep[keyOf(f)] = true
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var gone []frontendKey
	for key := range b.held {
		if !keep[key] {
			gone = append(gone, key)
		}
	}
	errs := []error{b.dropLocked(gone), b.setLocked(want)}
	if !b.attached {
		errs = append(errs, b.attach())
	}
	return errors.Join(errs...)
}

// setLocked makes the changes some at a time: so many that calls to the kernel
// count little, and so few that none waits long for the others.
func (b *Balancer) setLocked(set map[Frontend]Service) error {
	var errs []error
	var some []*change
	writes := 0
	for f, s := range set {
		c, err := b.plan(f, s)
		if err != nil {
			errs = append(errs, err)
		}
		if c == nil {
			continue
		}
		some = append(some, c)
		writes += 1 + len(c.slots) + len(c.table) + len(c.next.members)
		if writes >= maxBatch {
			errs = append(errs, b.make(some))
			some, writes = some[:0], 0
		}
	}
	return errors.Join(append(errs, b.make(some))...)
}

// number returns a number that no frontend and no set has.
func (b *Balancer) number() uint32 {
	b.next++
	return b.next - 1
}

// plan returns what to change, or nil if the maps say so already.
func (b *Balancer) plan(f Frontend, s Service) (*change, error) {
	if err := valid(f, s); err != nil {
		return nil, fmt.Errorf("set %s of %s: %w", f, s.Name, err)
	}
	key, slots := keyOf(f), slotsOf(s)
	draining := drainingOf(f, s, slots)
	next := &entry{service: service{Slots: uint32(len(slots)), Affinity: affinitySeconds(s.Affinity)}} //nolint:gosec // bounded by memory
	if len(slots) <= near {
		next.service.Flags |= serviceNear
	} else {
		next.slots = next.service.Slots
	}
	if s.Drop {
		next.service.Flags |= serviceDrop
	}
	if len(s.Sources) > 0 {
		next.service.Flags |= serviceSources
	}
	sources := sourcesOf(s.Sources)
	next.digest = b.digest(next.service, slots, draining, hasMembers(key, next.service), sources)
	old, known := b.held[key]
	same := known && old.digest == next.digest
	if same && old.table == 0 {
		return nil, nil //nolint:nilnil // nothing to change
	}
	c := &change{front: f, name: s.Name, key: key, old: old, next: next, slots: slots}
	if f.Side == Outside {
		c.table, next.service.Slots = tableOf(slots)
		next.parts = uint32(len(c.table)) //nolint:gosec // bounded by the size of a table
	}
	if same && old.table == b.sum(c.table) {
		old.table = 0
		return nil, nil //nolint:nilnil // nothing to change
	}
	if known {
		next.service.ID = old.service.ID
	} else {
		next.service.ID, c.old = b.number(), &entry{}
	}
	next.service.Set = b.number()
	if hasMembers(key, next.service) {
		next.members = map[memberKey]uint8{}
		for _, to := range slices.Concat(slots, draining) {
			next.members[memberKey{ID: next.service.ID, Addr: to.Addr, Port: to.Port}] = uint8(to.Flags) //nolint:gosec // two bits
		}
	}
	for _, key := range sources {
		if next.sources == nil {
			next.sources = map[sourceKey]bool{}
		}
		key.ID = next.service.ID
		next.sources[key] = true
	}
	return c, nil
}

// hasMembers says whether the programs look for the backends of the frontend by
// address.
func hasMembers(key frontendKey, s service) bool {
	return s.Affinity != 0 || Side(key.Side) == Outside
}

// make writes what is new, switches the frontends to it, and deletes what was
// before. When one fails, all are made one by one, so that it alone fails.
func (b *Balancer) make(some []*change) error {
	if len(some) == 0 {
		return nil
	}
	err := b.write(some)
	if err == nil {
		keys, values := make([]frontendKey, 0, len(some)), make([]frontendValue, 0, len(some))
		for _, c := range some {
			keys, values = append(keys, c.key), append(values, valueOf(c.next.service, c.slots))
		}
		if err = putAll(b.coll.Maps["moot_services"], keys, values); err != nil {
			err = fmt.Errorf("write service: %w", err)
		}
	}
	switch {
	case err == nil:
		var rest remains
		for _, c := range some {
			b.held[c.key] = c.next
			rest.add(c.old, c.next)
		}
		return b.clear(&rest)
	case len(some) == 1:
		c := some[0] // nothing leads to what was written
		var rest remains
		rest.add(c.next, c.old)
		return fmt.Errorf("set %s of %s: %w", c.front, c.name, errors.Join(err, b.clear(&rest)))
	}
	var errs []error
	for _, c := range some {
		errs = append(errs, b.make([]*change{c}))
	}
	return errors.Join(errs...)
}

func (b *Balancer) write(some []*change) error {
	var slotKeys, tableKeys []slotKey
	var slots []backend
	var tables []table
	var memberKeys []memberKey
	var flags []uint8
	for _, c := range some {
		for i, slot := range c.slots[:c.next.slots] {
			slotKeys, slots = append(slotKeys, slotKey{c.next.service.Set, uint32(i)}), append(slots, slot) //nolint:gosec // an index
		}
		for i, part := range c.table {
			tableKeys, tables = append(tableKeys, slotKey{c.next.service.Set, uint32(i)}), append(tables, part) //nolint:gosec // an index
		}
		for key, of := range c.next.members {
			memberKeys, flags = append(memberKeys, key), append(flags, of)
		}
	}
	if err := putAll(b.coll.Maps["moot_slots"], slotKeys, slots); err != nil {
		return fmt.Errorf("write slots: %w", err)
	}
	if err := putAll(b.coll.Maps["moot_tables"], tableKeys, tables); err != nil {
		return fmt.Errorf("write tables: %w", err)
	}
	if err := putAll(b.coll.Maps["moot_members"], memberKeys, flags); err != nil {
		return fmt.Errorf("write members: %w", err)
	}
	for _, c := range some {
		for key := range c.next.sources {
			m := b.coll.Maps["moot_sources"]
			if err := m.Put(key, uint8(1)); err != nil {
				return fmt.Errorf("write sources: %w", full(m, err))
			}
		}
	}
	return nil
}

// remains are entries of the maps that nothing leads to.
type remains struct {
	slots, tables []slotKey
	members       []memberKey
	sources       []sourceKey
}

// add adds what the maps hold of e and not of keep.
func (r *remains) add(e, keep *entry) {
	for i := range e.slots {
		r.slots = append(r.slots, slotKey{e.service.Set, i})
	}
	for i := range e.parts {
		r.tables = append(r.tables, slotKey{e.service.Set, i})
	}
	for key := range e.members {
		if _, kept := keep.members[key]; !kept {
			r.members = append(r.members, key)
		}
	}
	for key := range e.sources {
		if !keep.sources[key] {
			r.sources = append(r.sources, key)
		}
	}
}

func (b *Balancer) clear(r *remains) error {
	errs := []error{
		deleteAll(b.coll.Maps["moot_slots"], r.slots), deleteAll(b.coll.Maps["moot_tables"], r.tables),
		deleteAll(b.coll.Maps["moot_members"], r.members),
	}
	for _, key := range r.sources {
		errs = append(errs, deleteAll(b.coll.Maps["moot_sources"], []sourceKey{key}))
	}
	return errors.Join(errs...)
}

func (b *Balancer) dropLocked(keys []frontendKey) error {
	var rest remains
	known := make([]frontendKey, 0, len(keys))
	for _, key := range keys {
		if _, held := b.held[key]; held {
			known = append(known, key)
		}
	}
	if err := deleteAll(b.coll.Maps["moot_services"], known); err != nil {
		return fmt.Errorf("take away services: %w", err)
	}
	for _, key := range known {
		if e, held := b.held[key]; held { // not named twice
			rest.add(e, &entry{})
			delete(b.held, key)
		}
	}
	return b.clear(&rest)
}
