package backup

import (
	"bufio"
	"bytes"
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

// Reader reads one backup.
type Reader struct {
	Header   Header
	Material pki.Material

	zstd *zstd.Decoder
	in   *bufio.Reader
	hash hash.Hash
	keys int64
	last []byte
}

// NewReader reads the beginning of a backup. Close it in the end.
func NewReader(r io.Reader) (*Reader, error) {
	begin := make([]byte, len(magic))
	if n, err := io.ReadFull(r, begin); err != nil || string(begin) != magic {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read backup: %w", err)
		}
		if same := "moot backup "; n >= len(same) && string(begin[:len(same)]) == same && n == len(begin) {
			return nil, fmt.Errorf("read backup: %w that this version knows; use the moot that made it, or a newer one", ErrNotABackup)
		}
		return nil, fmt.Errorf("read backup: %w", ErrNotABackup)
	}
	dec, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", unreadable(err))
	}
	b := &Reader{zstd: dec, in: bufio.NewReader(dec), hash: sha256.New()}
	if err := b.begin(); err != nil {
		dec.Close()
		return nil, fmt.Errorf("read backup: %w", err)
	}
	return b, nil
}

func (b *Reader) begin() error {
	for _, part := range []struct {
		kind byte
		to   any
	}{{frameHeader, &b.Header}, {frameMaterial, &b.Material}} {
		kind, payload, err := b.frame()
		if err != nil {
			return err
		}
		if kind != part.kind {
			return damaged("a frame %q stands where %q should", kind, part.kind)
		}
		if err := json.Unmarshal(payload, part.to); err != nil {
			return unreadable(err)
		}
	}
	if err := b.Material.Validate(); err != nil {
		return unreadable(err)
	}
	return nil
}

// Close frees the decoder.
func (b *Reader) Close() { b.zstd.Close() }

// Next returns the next key and its value, which are the caller's. It returns
// [io.EOF] after the last of a whole backup only, and [ErrDamaged] otherwise.
func (b *Reader) Next() (key, value []byte, err error) {
	sum := b.hash.Sum(nil)
	kind, payload, err := b.frame()
	if err == nil {
		switch kind {
		case frameKey:
			if key, value, err = b.entry(payload); err == nil {
				return key, value, nil
			}
		case frameEnd:
			if err = b.end(payload, sum); err == nil {
				return nil, nil, io.EOF
			}
		default:
			err = damaged("a frame of unknown type %q", kind)
		}
	}
	return nil, nil, fmt.Errorf("read backup: %w", err)
}

func (b *Reader) entry(payload []byte) (key, value []byte, err error) {
	n, used := binary.Uvarint(payload)
	if used <= 0 || n == 0 || n > maxKeyBytes || n > uint64(len(payload)-used) {
		return nil, nil, damaged("a key has a wrong length")
	}
	rest := payload[used:]
	key, value = rest[:n:n], rest[n:]
	if bytes.Compare(key, b.last) <= 0 {
		return nil, nil, damaged("keys are out of order")
	}
	b.last = append(b.last[:0], key...)
	b.keys++
	return key, value, nil
}

// end checks the last frame, and that nothing comes after it.
func (b *Reader) end(payload, sum []byte) error {
	var t trailer
	if err := json.Unmarshal(payload, &t); err != nil {
		return unreadable(err)
	}
	switch _, err := b.in.ReadByte(); {
	case t.Keys != b.keys:
		return damaged("%d keys instead of %d", b.keys, t.Keys)
	case t.SHA256 != hex.EncodeToString(sum):
		return damaged("its checksum is another")
	case err == nil:
		return damaged("something follows its end")
	case !errors.Is(err, io.EOF):
		return unreadable(err)
	}
	return nil
}

func (b *Reader) frame() (kind byte, payload []byte, err error) {
	if kind, err = b.in.ReadByte(); err != nil {
		return 0, nil, unreadable(err)
	}
	n, err := binary.ReadUvarint(b.in)
	if err != nil {
		return 0, nil, unreadable(err)
	}
	if n > maxFrameBytes {
		return 0, nil, damaged("a frame of %d bytes", n)
	}
	// What is read grows with what is there, not with what a length claims.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, b.in, int64(n)); err != nil {
		return 0, nil, unreadable(err)
	}
	b.hash.Write(binary.AppendUvarint([]byte{kind}, n))
	b.hash.Write(buf.Bytes())
	return kind, buf.Bytes(), nil
}

// Verify reads a backup to its end and tells what is in it. Only with a nil
// error may anything of it be used.
func Verify(r io.Reader) (Summary, error) {
	b, err := NewReader(r)
	if err != nil {
		return Summary{}, err
	}
	defer b.Close()
	s := Summary{Header: b.Header}
	for {
		key, value, err := b.Next()
		if errors.Is(err, io.EOF) {
			s.Keys = b.keys
			return s, nil
		}
		if err != nil {
			return Summary{}, err
		}
		s.Bytes += int64(len(key) + len(value))
	}
}
