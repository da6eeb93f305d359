package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/mootkube/moot/node/pki"
)

// Writer writes one backup.
type Writer struct {
	out  *zstd.Encoder
	hash hash.Hash
	keys int64
	last []byte
	err  error // the first failure; everything after it fails too
}

// NewWriter begins a backup on w. Only [Writer.Close] makes it whole.
func NewWriter(w io.Writer, h Header, m pki.Material) (*Writer, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	if _, err := io.WriteString(w, magic); err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	out, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	b := &Writer{out: out, hash: sha256.New()}
	b.json(frameHeader, h)
	b.json(frameMaterial, m)
	return b, b.failed()
}

// Put adds a key. Keys come in order.
func (b *Writer) Put(key, value []byte) error {
	if b.err == nil && (len(key) == 0 || len(key) > maxKeyBytes || string(key) <= string(b.last)) {
		b.err = fmt.Errorf("key %.80q is empty, too long or out of order", key)
	}
	payload := binary.AppendUvarint(nil, uint64(len(key)))
	b.frame(frameKey, append(append(payload, key...), value...))
	b.keys++
	b.last = append(b.last[:0], key...)
	return b.failed()
}

// Close writes what proves the backup whole.
func (b *Writer) Close() error {
	b.json(frameEnd, trailer{Keys: b.keys, SHA256: hex.EncodeToString(b.hash.Sum(nil))})
	if err := b.out.Close(); b.err == nil {
		b.err = err
	}
	err := b.failed()
	if b.err == nil {
		b.err = errors.New("it was closed")
	}
	return err
}

func (b *Writer) failed() error {
	if b.err != nil {
		return fmt.Errorf("write backup: %w", b.err)
	}
	return nil
}

func (b *Writer) json(kind byte, v any) {
	data, err := json.Marshal(v)
	if err != nil && b.err == nil {
		b.err = err
	}
	b.frame(kind, data)
}

func (b *Writer) frame(kind byte, payload []byte) {
	if b.err == nil && len(payload) > maxFrameBytes {
		b.err = fmt.Errorf("a value of %d bytes is too long", len(payload))
	}
	if b.err != nil {
		return
	}
	head := binary.AppendUvarint([]byte{kind}, uint64(len(payload)))
	for _, part := range [][]byte{head, payload} {
		b.hash.Write(part)
		if _, b.err = b.out.Write(part); b.err != nil {
			return
		}
	}
}
