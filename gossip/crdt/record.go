package crdt

import (
	"errors"
	"fmt"
)

// Record is one change of one key as it is stored and replicated. Create, Mod,
// Version and Deadline are local to the replica that holds it; the rest
// travels unchanged.
//
// Records are immutable once made: their slices are shared freely.
type Record struct {
	Key     []byte
	Value   []byte // what the key holds after the change; empty for a delete
	Deleted bool

	Dot         Dot
	Stamp       Stamp
	Parent      Dot   // the change this one replaced, zero for none
	ParentStamp Stamp // that change's stamp

	Create  Revision // revision at which this life of the key began
	Mod     Revision // revision of this change
	Version int64    // changes since Create, 1 for the create itself

	Lease    int64 // lease the key is attached to, 0 for none
	Deadline int64 // when the lease runs out, Unix milliseconds, 0 for never

	// What the merge of Kubernetes objects needs, opaque here.
	UID        string
	APIVersion string
	Paths      []byte // encoded set of the field paths the change touched

	// Unknown holds the encoded fields that a newer version added, kept as
	// they came.
	Unknown []byte
}

// Valid reports whether the record upholds its invariants: a key, a dot, a
// stamp later than its parent's, and, once a replica has numbered it, revisions
// and a version that fit together.
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
	case r.Parent.IsZero() != (r.ParentStamp == 0):
		return errors.New("parent and its stamp do not go together")
	case r.ParentStamp >= r.Stamp:
		return fmt.Errorf("stamp %d is not after its parent's %d", r.Stamp, r.ParentStamp)
	case r.Deleted && len(r.Value) > 0:
		return errors.New("a delete carries a value")
	case r.Mod < 0 || r.Create < 0 || r.Version < 0 || r.Deadline < 0:
		return errors.New("a negative number")
	}
	if err := r.Dot.valid(); err != nil {
		return err
	}
	if err := r.Parent.valid(); err != nil {
		return err
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
