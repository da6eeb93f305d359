package gossip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/mootkube/moot/gossip/crdt"
)

// packBytes is from which size on the heads of a message are compressed.
const packBytes = 2 << 10

// records is part of one frame of the server's tail. The last part carries
// what the server's vector and revision are after it.
//
// In the message, what the records say of their values stands before the
// values: keys, dots and stamps of one frame are much alike, so together they
// compress to a part of their size. The values are sent as they are.
type records struct {
	Last     bool
	Revision int64       // of the server, after these; on the last part
	Vector   crdt.Vector // what changed in the server's vector, on the last part
	Records  []*crdt.Record
	Large    []large // announced instead of sent; in place of nil Records
}

// large announces a record that is only sent when it is asked for.
type large struct {
	Index int // in Records
	Dot   crdt.Dot
}

const (
	recordsLast   = 1 << iota
	recordsPacked // the heads are compressed
)

// append appends the message's body to b.
func (m *records) append(b []byte) (messageType, []byte) {
	heads, values := m.heads()
	var flags uint64
	if m.Last {
		flags = recordsLast
	}
	size, sent := len(heads), heads
	if packed := pack(heads); packed != nil {
		flags, sent = flags|recordsPacked, packed
	}
	b = slices.Grow(b, 64+18*len(m.Vector)+len(sent)+values)
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendVarint(b, m.Revision)
	b = appendVector(b, m.Vector)
	b = binary.AppendUvarint(b, uint64(len(m.Records)))
	b = binary.AppendUvarint(b, uint64(size))
	b = appendBytes(b, sent)
	for _, r := range m.Records {
		if r != nil {
			b = append(b, r.Value...)
		}
	}
	if len(m.Large) == 0 {
		return msgRecords, b
	}
	b = binary.AppendUvarint(b, uint64(len(m.Large)))
	for _, l := range m.Large {
		b = binary.AppendUvarint(b, uint64(l.Index))
		b = binary.AppendUvarint(b, uint64(l.Dot.Origin))
		b = binary.AppendUvarint(b, l.Dot.Seq)
	}
	return msgAnnounce, b
}

// heads encodes all but the values, of which it returns the size. The head of a
// record that is not sent is empty.
func (m *records) heads() (b []byte, values int) {
	one := make([]byte, 0, 256)
	b = make([]byte, 0, 128*len(m.Records))
	for _, r := range m.Records {
		one = one[:0]
		if r == nil {
			b = appendBytes(b, one)
			continue
		}
		one = crdt.AppendSent(one, r)
		b = binary.AppendUvarint(appendBytes(b, one), uint64(len(r.Value)))
		values += len(r.Value)
	}
	return b, values
}

func decodeRecords(t messageType, b []byte) (*records, error) {
	d := decoder{b: b}
	flags := d.uint()
	m := &records{Last: flags&recordsLast != 0, Revision: d.int(), Vector: d.vector()}
	n, size := d.uint(), d.uint()
	heads := decoder{b: d.bytes(len(d.b)), err: d.err}
	if d.err == nil && flags&recordsPacked != 0 {
		heads.b, heads.err = unpack(heads.b, size)
	}
	if n > maxRecords || n > uint64(len(heads.b)) {
		heads.fail("too many records")
	}
	if heads.err != nil {
		return nil, heads.err
	}
	m.Records = make([]*crdt.Record, n)
	holes := 0
	for i := range m.Records {
		head := heads.bytes(maxMessage)
		if heads.err == nil && len(head) == 0 {
			holes++
			continue
		}
		value := d.take(heads.uint())
		if heads.err != nil || d.err != nil {
			d.fail("length out of bounds")
			return nil, d.err
		}
		r, err := crdt.DecodeSent(head, value)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errWire, err)
		}
		m.Records[i] = r
	}
	if t == msgAnnounce {
		m.announced(&d)
	}
	if d.err == nil && holes != len(m.Large) {
		d.fail("a record is missing")
	}
	return m, d.end()
}

// announced reads which records are only announced.
func (m *records) announced(d *decoder) {
	k := d.uint()
	if k > uint64(len(m.Records)) {
		d.fail("too many announcements")
		return
	}
	for range k {
		l := large{Index: int(min(d.uint(), maxRecords)), Dot: crdt.Dot{Origin: crdt.Origin(d.uint()), Seq: d.uint()}}
		if d.err == nil && (l.Index >= len(m.Records) || m.Records[l.Index] != nil || l.Dot.IsZero()) {
			d.fail("announcement of no record")
		}
		m.Large = append(m.Large, l)
	}
}

// pack compresses heads, or is nil where that is not worth it.
func pack(heads []byte) []byte {
	if len(heads) < packBytes {
		return nil
	}
	var out bytes.Buffer
	if err := flate.StatelessDeflate(&out, heads, true, nil); err != nil || out.Len() >= len(heads) {
		return nil
	}
	return out.Bytes()
}

// unpackers keeps what unpack needs, some 40 KB each.
var unpackers = sync.Pool{New: func() any { return flate.NewReader(nil) }}

// unpack undoes pack. The memory it takes grows with what is there, not with
// what was promised.
func unpack(packed []byte, size uint64) ([]byte, error) {
	if size > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes of heads", errWire, size)
	}
	in := unpackers.Get().(io.Reader)
	defer unpackers.Put(in)
	if err := in.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
		return nil, fmt.Errorf("%w: heads: %w", errWire, err)
	}
	heads, err := io.ReadAll(io.LimitReader(in, int64(size)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: heads: %w", errWire, err)
	}
	if uint64(len(heads)) != size {
		return nil, fmt.Errorf("%w: not %d bytes of heads", errWire, size)
	}
	return heads, nil
}
