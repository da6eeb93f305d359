package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/mootkube/moot/gossip/store"
)

// nodeObjectPrefix is where Nodes are stored.
const nodeObjectPrefix = objectPrefix + "minions/"

// errPodCIDRsMoved means that the Node is not what it was taken for.
var errPodCIDRsMoved = errors.New("the Node has changed")

// replacePodCIDRs changes a Node's pod networks in the store, where the API's
// rule that they are for good does not reach. It does so only if they are what
// from says and nobody writes the Node meanwhile. The rest of the object, its
// unknown fields included, stays.
func replacePodCIDRs(ctx context.Context, db *store.Store, name string, from, to []string) error {
	if len(to) == 0 {
		return errors.New("a node without a pod network")
	}
	key := []byte(nodeObjectPrefix + name)
	found, err := db.Range(ctx, store.RangeRequest{Key: key})
	if err != nil {
		return fmt.Errorf("read Node %s: %w", name, err)
	}
	if len(found.KVs) == 0 {
		return fmt.Errorf("read Node %s: %w", name, errPodCIDRsMoved)
	}
	changed, err := withPodCIDRs(found.KVs[0].Value, from, to)
	if err != nil {
		return err
	}
	result, err := db.Txn(ctx, store.Txn{
		If:   []store.Compare{{Key: key, Target: store.TargetMod, Relation: store.Equal, Int: found.KVs[0].ModRevision}},
		Then: []store.Op{{Kind: store.OpPut, Key: key, Value: changed}},
	})
	if err != nil {
		return fmt.Errorf("write Node %s: %w", name, err)
	}
	if !result.Succeeded {
		return fmt.Errorf("write Node %s: %w", name, errPodCIDRsMoved)
	}
	return nil
}

// withPodCIDRs edits a stored Node.
func withPodCIDRs(stored []byte, from, to []string) ([]byte, error) {
	var object map[string]any
	decoder := json.NewDecoder(bytes.NewReader(stored))
	decoder.UseNumber() // as they were written
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("decode stored Node: %w", err)
	}
	spec, _ := object["spec"].(map[string]any)
	list, _ := spec["podCIDRs"].([]any)
	have := make([]string, 0, len(list))
	for _, v := range list {
		s, _ := v.(string)
		have = append(have, s)
	}
	if !slices.Equal(have, from) {
		return nil, fmt.Errorf("pod networks are %v, not %v: %w", have, from, errPodCIDRsMoved)
	}
	spec["podCIDR"], spec["podCIDRs"] = to[0], to
	changed, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode Node: %w", err)
	}
	return append(changed, '\n'), nil
}
