package crdt

import (
	"errors"
	"fmt"
)

// Record is one change of one key as it is stored and replicated, with all the
// key's state after it. Create, Mod, Version and Deadline are local to the
// replica that holds it; the rest travels unchanged.
//
// Dot and Stamp name the change that brought the entry about: on the replica
// that wrote it, the write; where concurrent changes were joined, the one that
// came. The rest but the local numbers is a function of the changes included,
// wherever they were joined.
//
// Records are immutable once made: their slices are shared freely.
type Record struct {
	Key     []byte
	Value   []byte // what the key holds after the change; empty for a delete
	Deleted bool

	Dot   Dot
	Stamp Stamp

	Create  Revision // revision at which this life of the key began
	Mod     Revision // revision of this change
	Version int64    // changes since Create, 1 for the create itself

	Lease    int64 // lease the key is attached to, 0 for none
	Deadline int64 // when the lease runs out by the clock of the stamp, Unix milliseconds, 0 for never

	UID        string // of the visible object, empty when it has none
	APIVersion string // it is stored in

	// Meta holds what else the state consists of, encoded: the changes
	// included, who wrote which fields, lives that are hidden. It is empty for
	// a key that was written once.
	Meta []byte

	// Unknown holds the encoded fields that a newer version added, kept as
	// they came.
	Unknown []byte
}

// Covers reports whether the state that r carries includes the change d.
func (r *Record) Covers(d Dot) bool {
	if d.IsZero() || r.Dot.Origin == d.Origin && r.Dot.Seq >= d.Seq {
		return true
	}
	if len(r.Meta) == 0 {
		return false
	}
	in := reader{b: r.Meta}
	return in.header()&metaSeen != 0 && in.covers(d)
}

// Joined reports whether the record came of joining concurrent changes. Then
// its dot alone does not stand for all that it includes: another record may
// cover the dot and lack the rest.
func (r *Record) Joined() bool { return len(r.Meta) > 1 && r.Meta[1]&metaJoined != 0 }

// AppendState appends what is the same on every replica that includes the same
// changes of the key: all but the dot, the stamp and the local numbers.
func AppendState(b []byte, r *Record) ([]byte, error) {
	s, err := decodeState(r)
	if err != nil {
		return b, fmt.Errorf("encode state of %q: %w", r.Key, err)
	}
	b = appendBlob(b, r.Key)
	b = s.seen.Append(b)
	b = s.appendEnded(b)
	b = s.appendLives(b)
	if !r.Deleted {
		b = appendBlob(b, r.UID)
		b = appendBlob(b, r.APIVersion)
		b = appendBlob(b, r.Value)
	}
	return b, nil
}

// Valid reports whether the record upholds its invariants: a key, a dot, a
// stamp, and, once a replica has numbered it, revisions and a version that fit
// together.
func (r *Record) Valid() error {
	if err := r.valid(); err != nil {
		return fmt.Errorf("validate record %q: %w", r.Key, err)
	}
	return nil
}

func (r *Record) valid() error {
	switch {
	case len(r.Key) == 0:
		return errors.New("no key")
	case r.Dot.IsZero():
		return errors.New("no dot")
	case r.Stamp == 0:
		return errors.New("no stamp")
	case r.Deleted && len(r.Value) > 0:
		return errors.New("a delete carries a value")
	case r.Mod < 0 || r.Create < 0 || r.Version < 0 || r.Deadline < 0:
		return errors.New("a negative number")
	}
	if err := r.Dot.valid(); err != nil {
		return err
	}
	if len(r.Meta) > 0 {
		if _, err := decodeState(r); err != nil {
			return err
		}
	}
	if r.Mod == 0 {
		return nil
	}
	return r.validRevisions()
}

func (r *Record) validRevisions() error {
	if r.Deleted {
		if r.Create != 0 || r.Version != 0 {
			return errors.New("a delete has a create revision or a version")
		}
		return nil
	}
	if r.Create == 0 || r.Create > r.Mod {
		return fmt.Errorf("create revision %d does not fit revision %d", r.Create, r.Mod)
	}
	if r.Version < 1 || (r.Version == 1) != (r.Create == r.Mod) {
		return fmt.Errorf("version %d does not fit create revision %d and revision %d", r.Version, r.Create, r.Mod)
	}
	return nil
}
