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
	size := 0
	for len(c.items) > 0 && size < FrameBytes && len(f.Records) < frameRecords {
		r, err := t.cutRecord(c.items[0])
		if err != nil {
			return Frame{}, err
		}
		c.items = c.items[1:]
		if r != nil && !t.includes(r) {
			f.Records = append(f.Records, r)
			size += len(r.Key) + len(r.Value) + len(r.Meta)
		}
	}
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

// cutRecord returns the state of a key, or a newer one when that is gone. It
// returns nil for a tombstone that has been forgotten since the cut began.
func (t *Tail) cutRecord(it *item) (*crdt.Record, error) {
	last := it.newest()
	r, err := t.store.record(last)
	for errors.Is(err, errMissing) {
		v := t.store.view.Load()
		now, ok := v.items.Get(it)
		switch {
		case !ok && len(lasting(t.have)) > 0 && !t.have.Includes(v.forgotten):
			return nil, ErrForgotten
		case !ok:
			return nil, nil
		case now.newest().rev == last.rev:
			return nil, fmt.Errorf("tail: %w: %w", ErrDamaged, err)
		}
		last = now.newest()
		r, err = t.store.record(last)
	}
	if err != nil {
		return nil, fmt.Errorf("tail: %w", err)
	}
	return r, nil
}
