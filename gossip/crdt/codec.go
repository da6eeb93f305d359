package crdt

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of what [DecodeRecord] accepts.
const (
	MaxKeyBytes     = 64 << 10
	MaxValueBytes   = 64 << 20
	MaxMetaBytes    = 64 << 20
	maxNameBytes    = 4 << 10
	maxUnknownBytes = 1 << 20
)

// ErrMalformed reports bytes that are not a record.
var ErrMalformed = errors.New("malformed record")

// Field numbers of an encoded record, in protocol buffers wire format. A number
// is never reused.
const (
	fieldKey protowire.Number = iota + 1
	fieldValue
	fieldDeleted
	fieldOrigin
	fieldSeq
	fieldStamp
	_ // the parent's origin, sequence and stamp, until format 2
	_
	_
	fieldCreate
	fieldMod
	fieldVersion
	fieldLease
	fieldDeadline
	fieldUID
	fieldAPIVersion
	_ // the paths of one change, until format 2
	fieldMeta
)

// AppendRecord appends the encoding of r to b. Equal records encode equally.
// The value comes last but for Unknown, so that a reader of the header alone
// need not touch it.
func AppendRecord(b []byte, r *Record) []byte {
	b = appendHeader(b, r, true)
	b = appendBytes(b, fieldValue, r.Value)
	return append(b, r.Unknown...)
}

// AppendSent appends the encoding of what another replica is to get of r, but
// for the value, to b: the revisions and the version are those of this one.
func AppendSent(b []byte, r *Record) []byte { return append(appendHeader(b, r, false), r.Unknown...) }

func appendHeader(b []byte, r *Record, local bool) []byte {
	b = appendBytes(b, fieldKey, r.Key)
	if r.Deleted {
		b = appendVarint(b, fieldDeleted, 1)
	}
	b = appendFixed(b, fieldOrigin, uint64(r.Dot.Origin))
	b = appendVarint(b, fieldSeq, r.Dot.Seq)
	b = appendFixed(b, fieldStamp, uint64(r.Stamp))
	if local {
		b = appendFixed(b, fieldCreate, uint64(r.Create))
		b = appendFixed(b, fieldMod, uint64(r.Mod))
		b = appendVarint(b, fieldVersion, uint64(r.Version))
	}
	b = appendVarint(b, fieldLease, uint64(r.Lease))
	b = appendVarint(b, fieldDeadline, uint64(r.Deadline))
	b = appendBytes(b, fieldUID, []byte(r.UID))
	b = appendBytes(b, fieldAPIVersion, []byte(r.APIVersion))
	return appendBytes(b, fieldMeta, r.Meta)
}

func appendBytes(b []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, n, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func appendVarint(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, n, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendFixed(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, n, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, v)
}

// DecodeRecord decodes one record. The result shares memory with b. It fails
// with [ErrMalformed] on bytes that are no record, break a bound or decode to a
// record that is not valid; it never panics.
func DecodeRecord(b []byte) (*Record, error) {
	r := &Record{}
	if err := r.decode(b); err != nil {
		return nil, err
	}
	return r.decoded()
}

// DecodeSent decodes what [AppendSent] wrote, as [DecodeRecord] does, and gives
// the record its value.
func DecodeSent(b, value []byte) (*Record, error) {
	r := &Record{}
	if err := r.decode(b); err != nil {
		return nil, err
	}
	if len(r.Value) > 0 || r.Mod != 0 || r.Create != 0 || r.Version != 0 || len(value) > MaxValueBytes {
		return nil, fmt.Errorf("decode record: %w: a value too many or too large, or revisions of another replica", ErrMalformed)
	}
	if len(value) > 0 {
		r.Value = value
	}
	return r.decoded()
}

func (r *Record) decode(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("decode record tag: %w: %w", ErrMalformed, protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return fmt.Errorf("decode record field %d: %w: %w", num, ErrMalformed, protowire.ParseError(m))
		}
		field := b[:n+m]
		known, err := r.decodeField(num, typ, field[n:])
		if err != nil {
			return fmt.Errorf("decode record field %d: %w: %w", num, ErrMalformed, err)
		}
		if !known {
			r.Unknown = append(r.Unknown, field...)
			if len(r.Unknown) > maxUnknownBytes {
				return fmt.Errorf("decode record: %w: too many unknown fields", ErrMalformed)
			}
		}
		b = b[n+m:]
	}
	return nil
}

// decoded is r if what was read is a record.
func (r *Record) decoded() (*Record, error) {
	if err := r.Valid(); err != nil {
		return nil, fmt.Errorf("decode record: %w: %w", ErrMalformed, err)
	}
	return r, nil
}

// decodeField sets the field num from v, which holds exactly one well-formed
// value of typ. It reports false for a field it does not know.
func (r *Record) decodeField(num protowire.Number, typ protowire.Type, v []byte) (bool, error) {
	switch typ {
	case protowire.BytesType:
		data, _ := protowire.ConsumeBytes(v)
		return r.setBytes(num, data)
	case protowire.VarintType:
		u, _ := protowire.ConsumeVarint(v)
		return r.setNumber(num, u, false)
	case protowire.Fixed64Type:
		u, _ := protowire.ConsumeFixed64(v)
		return r.setNumber(num, u, true)
	}
	if num <= fieldMeta {
		return false, errors.New("wrong wire type")
	}
	return false, nil
}

func (r *Record) setBytes(num protowire.Number, v []byte) (bool, error) {
	limit := maxNameBytes
	switch num {
	case fieldKey:
		limit, r.Key = MaxKeyBytes, v
	case fieldValue:
		limit, r.Value = MaxValueBytes, v
	case fieldUID:
		r.UID = string(v[:min(len(v), limit)])
	case fieldAPIVersion:
		r.APIVersion = string(v[:min(len(v), limit)])
	case fieldMeta:
		limit, r.Meta = MaxMetaBytes, v
	default:
		if num <= fieldMeta {
			return false, errors.New("wrong wire type")
		}
		return false, nil
	}
	if len(v) > limit {
		return false, fmt.Errorf("%d bytes, at most %d allowed", len(v), limit)
	}
	return true, nil
}

func (r *Record) setNumber(num protowire.Number, v uint64, fixed bool) (bool, error) {
	wantFixed := true
	switch num {
	case fieldOrigin:
		r.Dot.Origin = Origin(v)
	case fieldStamp:
		r.Stamp = Stamp(v)
	case fieldCreate:
		r.Create = Revision(v)
	case fieldMod:
		r.Mod = Revision(v)
	default:
		wantFixed = false
		if known, err := r.setVarint(num, v); !known || err != nil {
			return known, err
		}
	}
	if fixed != wantFixed {
		return false, errors.New("wrong wire type")
	}
	return true, nil
}

func (r *Record) setVarint(num protowire.Number, v uint64) (bool, error) {
	switch num {
	case fieldDeleted:
		if v > 1 {
			return false, errors.New("not a boolean")
		}
		r.Deleted = v == 1
	case fieldSeq:
		r.Dot.Seq = v
	case fieldVersion:
		r.Version = int64(v)
	case fieldLease:
		r.Lease = int64(v)
	case fieldDeadline:
		if v > math.MaxInt64 {
			return false, errors.New("deadline out of range")
		}
		r.Deadline = int64(v)
	default:
		if num <= fieldMeta {
			return false, errors.New("wrong wire type")
		}
		return false, nil
	}
	return true, nil
}
