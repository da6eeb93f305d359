package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// Digest sums up the visible content of the replicated durable keys. Replicas
// that hold the same have the same digest, whatever the order they got it in.
type Digest struct {
	Sum  uint64
	Keys int64
}

// String returns the digest in hexadecimal, for comparison.
func (d Digest) String() string { return fmt.Sprintf("%016x-%d", d.Sum, d.Keys) }

// Digest returns the digest of what is visible.
func (s *Store) Digest() Digest { return s.view.Load().digest }

// with returns the digest with v in it, without the one with v out of it. A
// version that does not count has no sum.
func (d Digest) with(v *version) Digest {
	if v.sum == 0 {
		return d
	}
	return Digest{Sum: d.Sum + v.sum, Keys: d.Keys + 1}
}

func (d Digest) without(v *version) Digest {
	if v.sum == 0 {
		return d
	}
	return Digest{Sum: d.Sum - v.sum, Keys: d.Keys - 1}
}

// digestOf returns the share of one key: a hash of key, UID and value, 0 for a
// delete alone.
func digestOf(r *crdt.Record) uint64 {
	if r.Deleted {
		return 0
	}
	var d xxhash.Digest
	d.Reset()
	var size [8]byte
	for _, part := range [][]byte{r.Key, []byte(r.UID), r.Value} {
		binary.LittleEndian.PutUint64(size[:], uint64(len(part)))
		_, _ = d.Write(size[:])
		_, _ = d.Write(part)
	}
	return max(d.Sum64(), 1)
}

// hashUID tells UIDs apart, 0 being none.
func hashUID(uid string) uint32 {
	if uid == "" {
		return 0
	}
	return max(uint32(xxhash.Sum64String(uid)), 1)
}
