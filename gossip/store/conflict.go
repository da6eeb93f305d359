package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mootkube/moot/gossip/crdt"
)

// ConflictPrefix is where what lost in merges is kept, as replicated keys. Key
// and value follow from the conflict alone, so that replicas that find the same
// one write the same.
const ConflictPrefix = "/moot/conflicts/"

// observedPrefix is where those among them are that [crdt.Conflict.Observed]
// tells: each side of a cut makes them by the second, and they must not push
// out what people wrote.
const observedPrefix = ConflictPrefix + "observed/"

// maxConflicts bounds how many of either kind are kept; the oldest go.
const maxConflicts = 1000

var conflictEnd = []byte("/moot/conflicts0")

// Conflicts returns what lost in merges and is kept to be seen, oldest first.
func (s *Store) Conflicts(ctx context.Context) ([]crdt.Conflict, error) {
	res, err := s.Range(ctx, RangeRequest{Key: []byte(ConflictPrefix), End: conflictEnd})
	if err != nil {
		return nil, fmt.Errorf("list conflicts: %w", err)
	}
	slices.SortFunc(res.KVs, func(a, b KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	all := make([]crdt.Conflict, 0, len(res.KVs))
	for _, kv := range res.KVs {
		var conflict crdt.Conflict
		if err := json.Unmarshal(kv.Value, &conflict); err != nil {
			return nil, fmt.Errorf("list conflicts: decode %s: %w", kv.Key, err)
		}
		all = append(all, conflict)
	}
	return all, nil
}

// keepConflicts writes down what lost, unless that has been done.
func (c *committer) keepConflicts(b *batch, lost []crdt.Conflict) {
	added := map[string]bool{}
	for i := range lost {
		if strings.HasPrefix(lost[i].Key, "/moot/") || !classOf([]byte(lost[i].Key)).durable {
			continue // nobody's work
		}
		value, err := json.Marshal(&lost[i])
		if err != nil {
			c.store.cfg.Log.Error("conflict is not kept", "key", lost[i].Key, "err", err)
			continue
		}
		sum := sha256.Sum256(value)
		prefix := ConflictPrefix
		if lost[i].Observed() {
			prefix = observedPrefix
		}
		key := append([]byte(prefix), hex.EncodeToString(sum[:16])...)
		if _, last := c.head.get(key); last != nil {
			continue
		}
		c.put(b, &Op{Kind: OpPut, Key: key, Value: value}, nil, nil, crdt.Change{})
		added[prefix] = true
	}
	for prefix := range added {
		c.trimConflicts(b, prefix)
	}
}

// trimConflicts deletes the oldest conflicts of one kind beyond the bound.
func (c *committer) trimConflicts(b *batch, prefix string) {
	type kept struct {
		key []byte
		ver *version
	}
	var all []kept
	c.head.scan([]byte(ConflictPrefix), conflictEnd, c.head.rev, func(it *item, v *version) bool {
		if bytes.HasPrefix(it.key, []byte(observedPrefix)) == (prefix == observedPrefix) {
			all = append(all, kept{it.key, v})
		}
		return true
	})
	if len(all) <= maxConflicts {
		return
	}
	slices.SortFunc(all, func(x, y kept) int {
		return cmp.Or(cmp.Compare(x.ver.born, y.ver.born), bytes.Compare(x.key, y.key))
	})
	for _, k := range all[:len(all)-maxConflicts] {
		c.delete(b, k.key, k.ver, nil)
	}
}
