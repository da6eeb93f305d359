package etcd

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// answer is a response that writes itself from what the store returned. The
// answers that carry values are such; all else is protobuf's generated code. It
// spares a message per key and, since a long value is handed to the transport
// as it is, the copying of values.
type answer interface {
	// length is the length of the message.
	length() int
	// encode appends the message.
	encode(e *encoder)
}

// codec is the server's: protobuf's, and answers.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(answer); ok {
		return marshal(a), nil
	}
	return c.CodecV2.Marshal(v)
}

// wholeBytes is from which length on a value is passed on instead of copied.
const wholeBytes = 1 << 10

// encoder collects a message in the protobuf wire format, in parts: its own
// bytes, and values between them that stay where they are.
type encoder struct {
	parts   mem.BufferSlice
	buf     []byte
	flushed int // what is before it is in parts
}

// blockBytes is what the encoder allocates at a time for its own bytes.
const blockBytes = 8 << 10

func marshal(a answer) mem.BufferSlice {
	e := encoder{buf: make([]byte, 0, min(a.length(), blockBytes))}
	a.encode(&e)
	e.flush()
	return e.parts
}

func (e *encoder) flush() {
	if e.flushed < len(e.buf) {
		e.parts = append(e.parts, mem.SliceBuffer(e.buf[e.flushed:len(e.buf):len(e.buf)]))
		e.flushed = len(e.buf)
	}
}

// reserve makes room for n bytes without moving what is written.
func (e *encoder) reserve(n int) {
	if cap(e.buf)-len(e.buf) < n {
		e.flush()
		e.buf, e.flushed = make([]byte, 0, max(n, blockBytes)), 0
	}
}

// Field numbers are below 16 here, so a tag is one byte.

const (
	wireVarint = 0
	wireBytes  = 2
)

func (e *encoder) tag(field, wire byte) { e.buf = append(e.buf, field<<3|wire) }

func (e *encoder) varint(n uint64) {
	for n >= 0x80 {
		e.buf = append(e.buf, byte(n)|0x80)
		n >>= 7
	}
	e.buf = append(e.buf, byte(n))
}

// number writes a number field, which zero leaves out.
func (e *encoder) number(field byte, n uint64) {
	if n != 0 {
		e.tag(field, wireVarint)
		e.varint(n)
	}
}

func (e *encoder) flag(field byte, set bool) {
	if set {
		e.number(field, 1)
	}
}

// bytes writes a bytes field, which an empty one leaves out.
func (e *encoder) bytes(field byte, b []byte) {
	if len(b) == 0 {
		return
	}
	e.open(field, len(b))
	if len(b) < wholeBytes {
		e.buf = append(e.buf, b...)
		return
	}
	e.flush()
	e.parts = append(e.parts, mem.SliceBuffer(b))
}

// open begins a field of a known length.
func (e *encoder) open(field byte, length int) {
	e.tag(field, wireBytes)
	e.varint(uint64(length))
}

func varintLength(n uint64) int {
	length := 1
	for n >= 0x80 {
		length++
		n >>= 7
	}
	return length
}

func numberLength(n uint64) int {
	if n == 0 {
		return 0
	}
	return 1 + varintLength(n)
}

func flagLength(set bool) int {
	if set {
		return 2
	}
	return 0
}

// fieldLength is the length of a field of a known length, written even if empty.
func fieldLength(length int) int { return 1 + varintLength(uint64(length)) + length }

func bytesLength(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return fieldLength(len(b))
}
