package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// errMissing: the log does not hold the revision any more.
var errMissing = errors.New("revision is not in the log")

// held returns the change that made v if it is in memory, nil otherwise.
func (s *Store) held(v *version) *crdt.Record {
	if v.rec != nil {
		return v.rec
	}
	return s.recent.get(v.rev)
}

// record returns the change that made v. It fails with errMissing when it has
// been compacted away meanwhile.
func (s *Store) record(v *version) (*crdt.Record, error) {
	if r := s.held(v); r != nil {
		return r, nil
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	b, err := getBytes(s.db, numberKey(logPrefix, v.rev))
	if err != nil {
		return nil, damagedRevision(v.rev, err)
	}
	if b == nil {
		return nil, errMissing
	}
	r, err := crdt.DecodeRecord(b)
	if err != nil {
		return nil, damagedRevision(v.rev, err)
	}
	return r, nil
}

func damagedRevision(rev int64, err error) error {
	return fmt.Errorf("read revision %d: %w: %s", rev, ErrDamaged, oneLine(err.Error()))
}

// keyValue returns the key as of v.
func (s *Store) keyValue(key []byte, v *version, keysOnly bool) (KeyValue, error) {
	kv := header(key, v)
	if keysOnly {
		return kv, nil
	}
	r, err := s.record(v)
	if err != nil {
		return KeyValue{}, err
	}
	kv.Value = r.Value
	return kv, nil
}

// header returns the key as of v without its value.
func header(key []byte, v *version) KeyValue {
	return KeyValue{
		Key:            key,
		CreateRevision: v.create,
		ModRevision:    v.rev,
		Version:        v.version,
		Lease:          v.lease,
	}
}

// scanFrom is the number of values on disk from which one pass over the log
// in its own order is quicker than a look-up each.
const scanFrom = 8

// keyValues returns the keys as of their versions.
func (s *Store) keyValues(found []selected, keysOnly bool) ([]KeyValue, error) {
	if len(found) == 0 {
		return nil, nil
	}
	kvs := make([]KeyValue, len(found))
	var absent []int
	for i, f := range found {
		kvs[i] = header(f.key, f.ver)
		if keysOnly {
			continue
		}
		if r := s.held(f.ver); r != nil {
			kvs[i].Value = r.Value
			continue
		}
		absent = append(absent, i)
	}
	if len(absent) >= scanFrom {
		return kvs, s.scanValues(kvs, absent)
	}
	for _, i := range absent {
		r, err := s.record(found[i].ver)
		if err != nil {
			return nil, err
		}
		kvs[i].Value = r.Value
	}
	return kvs, nil
}

// scanValues reads the values of the listed entries of kvs from the log, in
// the order of the log.
func (s *Store) scanValues(kvs []KeyValue, absent []int) error {
	slices.SortFunc(absent, func(a, b int) int {
		return int(min(max(kvs[a].ModRevision-kvs[b].ModRevision, -1), 1))
	})
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return ErrClosed
	}
	iter, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{logPrefix}, UpperBound: []byte{logPrefix + 1},
	})
	if err != nil {
		return fmt.Errorf("read log: %w: %s", ErrDamaged, oneLine(err.Error()))
	}
	for _, i := range absent {
		if kvs[i].Value, err = seekValue(iter, kvs[i].ModRevision); err != nil {
			break
		}
	}
	return errors.Join(err, iter.Close())
}

func seekValue(iter *pebble.Iterator, rev int64) ([]byte, error) {
	r, err := seekRecord(iter, rev)
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

func seekRecord(iter *pebble.Iterator, rev int64) (*crdt.Record, error) {
	key := numberKey(logPrefix, rev)
	if !iter.SeekGE(key) || !bytes.Equal(iter.Key(), key) {
		if err := iter.Error(); err != nil {
			return nil, damagedRevision(rev, err)
		}
		return nil, errMissing
	}
	b, err := iter.ValueAndErr()
	if err != nil {
		return nil, damagedRevision(rev, err)
	}
	r, err := crdt.DecodeRecord(bytes.Clone(b))
	if err != nil {
		return nil, damagedRevision(rev, err)
	}
	return r, nil
}

// records returns the changes that made the versions, nil for those that have
// been compacted away meanwhile. What is on disk is read in the order of the
// log.
func (s *Store) records(versions []*version) ([]*crdt.Record, error) {
	all := make([]*crdt.Record, len(versions))
	var absent []int
	for i, v := range versions {
		if all[i] = s.held(v); all[i] == nil {
			absent = append(absent, i)
		}
	}
	if len(absent) == 0 {
		return all, nil
	}
	slices.SortFunc(absent, func(a, b int) int { return cmp.Compare(versions[a].rev, versions[b].rev) })
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	iter, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{logPrefix}, UpperBound: []byte{logPrefix + 1},
	})
	if err != nil {
		return nil, fmt.Errorf("read log: %w: %s", ErrDamaged, oneLine(err.Error()))
	}
	for _, i := range absent {
		all[i], err = seekRecord(iter, versions[i].rev)
		if errors.Is(err, errMissing) {
			all[i], err = nil, nil
		}
		if err != nil {
			break
		}
	}
	return all, errors.Join(err, iter.Close())
}
