package store

import (
	"context"
	"errors"
	"fmt"
)

// Chunks of a streamed range end at the first of these.
const (
	chunkKeys  = 500
	chunkBytes = 1 << 20
)

// Range answers a read from one consistent view.
func (s *Store) Range(ctx context.Context, req RangeRequest) (RangeResult, error) {
	if err := ctx.Err(); err != nil {
		return RangeResult{}, err
	}
	if len(req.Key) == 0 {
		return RangeResult{}, errors.New("range: no key")
	}
	v, release, err := s.pinned(req.Revision)
	if err != nil {
		return RangeResult{}, err
	}
	defer release()
	return s.rangeView(v, req)
}

// RangeStream answers a read from one consistent view in bounded chunks, which
// emit gets in key order. The last one carries the final Count and More; there
// is always at least one. An error of emit ends the read and is returned.
func (s *Store) RangeStream(ctx context.Context, req RangeRequest, emit func(RangeResult) error) error {
	if len(req.Key) == 0 {
		return errors.New("range: no key")
	}
	v, release, err := s.pinned(req.Revision)
	if err != nil {
		return err
	}
	defer release()
	sel, err := v.pick(req)
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := chunk(sel.found, req.KeysOnly)
		res := RangeResult{Revision: v.rev}
		if res.KVs, err = s.keyValues(sel.found[:n], req.KeysOnly); err != nil {
			return readError(err)
		}
		sel.found = sel.found[n:]
		if len(sel.found) == 0 {
			res.Count, res.More = sel.count, sel.more
			return emit(res)
		}
		if err := emit(res); err != nil {
			return err
		}
	}
}

// chunk returns how many of the found keys go into one chunk.
func chunk(found []selected, keysOnly bool) int {
	size := 0
	for i, f := range found {
		if i == chunkKeys || i > 0 && size >= chunkBytes {
			return i
		}
		size += len(f.key)
		if !keysOnly {
			size = size + int(f.ver.size) - len(f.key)
		}
	}
	return len(found)
}

// pinned returns the present view with what a read at rev needs held on disk,
// 0 being the newest. Call release when done.
func (s *Store) pinned(rev int64) (v *view, release func(), err error) {
	for {
		v = s.view.Load()
		pin := v.rev
		if rev > 0 && rev < pin {
			if rev < v.floor {
				return nil, nil, ErrCompacted
			}
			pin = rev
		}
		if s.pins.hold(pin) {
			return v, func() { s.pins.release(pin) }, nil
		}
		if pin == rev {
			return nil, nil, ErrCompacted
		}
	}
}

// selection is what a range covers before its values are read.
type selection struct {
	found []selected
	count int64
	more  bool
}

type selected struct {
	key []byte
	ver *version
}

// pick finds the keys that a range covers.
func (v *view) pick(req RangeRequest) (selection, error) {
	rev := v.rev
	if req.Revision > 0 {
		rev = req.Revision
		if err := v.checkRevision(req.Key, req.End, rev); err != nil {
			return selection{}, err
		}
	}
	var sel selection
	v.scan(req.Key, req.End, rev, func(it *item, ver *version) bool {
		sel.count++
		if !req.CountOnly && (req.Limit <= 0 || sel.count <= req.Limit) {
			sel.found = append(sel.found, selected{it.key, ver})
		}
		return true
	})
	sel.more = !req.CountOnly && req.Limit > 0 && sel.count > req.Limit
	return sel, nil
}

func (s *Store) rangeView(v *view, req RangeRequest) (RangeResult, error) {
	sel, err := v.pick(req)
	if err != nil {
		return RangeResult{}, err
	}
	res := RangeResult{Revision: v.rev, Count: sel.count, More: sel.more}
	if res.KVs, err = s.keyValues(sel.found, req.KeysOnly); err != nil {
		return RangeResult{}, readError(err)
	}
	return res, nil
}

// readError turns a value that compaction took away under a read, which
// happens only to one that took very long, into what its caller can act on.
func readError(err error) error {
	if errors.Is(err, errMissing) {
		return fmt.Errorf("read took too long: %w", ErrCompacted)
	}
	return err
}
