package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/mootkube/moot/gossip/crdt"
)

// cut is the newest state of every key that a peer lacks, as of one view.
type cut struct {
	view    *view
	release func()
	items   []*item
}

// beginCut gathers what the peer lacks: the keys that exist in the order they
// came to be, so that what another object refers to is there before it, and
// then the tombstones.
func (t *Tail) beginCut() error {
	v, release, err := t.store.pinned(0)
	if err != nil {
		return fmt.Errorf("tail: %w", err)
	}
	if len(lasting(t.have)) > 0 && !t.have.Includes(v.forgotten) {
		release()
		return ErrForgotten
	}
	c := &cut{view: v, release: release}
	v.items.Ascend(func(it *item) bool {
		if classOf(it.key).replicated && t.lacks(it.newest()) {
			c.items = append(c.items, it)
		}
		return true
	})
	slices.SortFunc(c.items, func(a, b *item) int {
		x, y := a.newest(), b.newest()
		if x.deleted != y.deleted {
			return compareBool(x.deleted, y.deleted)
		}
		return cmp.Or(cmp.Compare(x.born, y.born), bytes.Compare(a.key, b.key))
	})
	t.cut = c
	return nil
}

func compareBool(a, b bool) int {
	if a == b {
		return 0
	} else if b {
		return -1
	}
	return 1
}

// nextOfCut returns the next frame of the cut.
func (t *Tail) nextOfCut() (Frame, error) {
	c := t.cut
	f := Frame{Cut: true}
	var versions []*version
	for size := 0; len(versions) < len(c.items) && size < FrameBytes && len(versions) < frameRecords; {
		last := c.items[len(versions)].newest()
		versions = append(versions, last)
		size += int(last.size)
	}
	records, err := t.store.records(versions)
	if err != nil {
		return Frame{}, fmt.Errorf("tail: %w", err)
	}
	for i, r := range records {
		if r == nil {
			if r, err = t.newerRecord(c.items[i]); err != nil {
				return Frame{}, err
			}
		}
		if r != nil && !t.includes(r) {
			f.Records = append(f.Records, r)
		}
	}
	c.items = c.items[len(versions):]
	if len(c.items) > 0 {
		return f, nil
	}
	v := c.view
	c.release()
	t.cut = nil
	t.next = v.rev + 1
	t.sent = v.claims.vector()
	t.have.Join(t.sent)
	f.Cut, f.Vector, f.Revision = false, t.sent.Clone(), v.rev
	if len(v.forgotten) > 0 {
		f.Records = append(f.Records, forgottenNote(v))
	}
	return f, nil
}

// newerRecord returns a newer state of a key than that of the cut, which is
// gone. It returns nil for a tombstone that has been forgotten since the cut
// began.
func (t *Tail) newerRecord(it *item) (*crdt.Record, error) {
	for last := it.newest(); ; {
		v := t.store.view.Load()
		now, ok := v.items.Get(it)
		switch {
		case !ok && len(lasting(t.have)) > 0 && !t.have.Includes(v.forgotten):
			return nil, ErrForgotten
		case !ok:
			return nil, nil
		case now.newest().rev == last.rev:
			return nil, fmt.Errorf("tail: %w: %w", ErrDamaged, errMissing)
		}
		last = now.newest()
		r, err := t.store.record(last)
		if !errors.Is(err, errMissing) {
			return r, err
		}
	}
}
