package node

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

const definitionsPrefix = "/registry/apiextensions.k8s.io/customresourcedefinitions/"

// schemas tells the store how the lists of an object merge: the built-in kinds
// by a table, custom ones by the definitions that this replica holds. Merges
// never ask; only this node's own writes do.
type schemas struct {
	builtin crdt.Schema
	custom  atomic.Pointer[crdt.Schemas]
}

func newSchemas() *schemas { return &schemas{builtin: crdt.Builtin()} }

// Type implements [crdt.Schema].
func (s *schemas) Type(apiVersion, kind string) *crdt.Type {
	if t := s.builtin.Type(apiVersion, kind); t != nil {
		return t
	}
	if custom := s.custom.Load(); custom != nil {
		return custom.Type(apiVersion, kind)
	}
	return nil
}

// follow keeps the custom kinds as db has them, until ctx ends or db closes.
func (s *schemas) follow(ctx context.Context, db *store.Store, log *slog.Logger) {
	byKey, end := map[string]crdt.Schema{}, prefixEnd(definitionsPrefix)
	for ctx.Err() == nil {
		found, err := db.Range(ctx, store.RangeRequest{Key: []byte(definitionsPrefix), End: end})
		if err != nil {
			return
		}
		clear(byKey)
		for _, kv := range found.KVs {
			readDefinition(byKey, kv, log)
		}
		s.publish(byKey)
		watcher, err := db.Watch(ctx, store.WatchRequest{Key: []byte(definitionsPrefix), End: end, StartRevision: found.Revision + 1})
		if err != nil {
			continue // compacted meanwhile: list again
		}
		for batch := range watcher.Events() {
			for _, e := range batch.Events {
				if e.Type == store.EventDelete {
					delete(byKey, string(e.KV.Key))
				} else {
					readDefinition(byKey, e.KV, log)
				}
			}
			s.publish(byKey)
		}
		watcher.Close()
	}
}

// readDefinition takes in one definition. Of one that cannot be read, the lists
// merge as one value.
func readDefinition(byKey map[string]crdt.Schema, kv store.KeyValue, log *slog.Logger) {
	schema, err := crdt.ReadCRD(kv.Value)
	if err != nil {
		log.Warn("lists of a custom kind are merged as one value", "key", string(kv.Key), "err", err)
		delete(byKey, string(kv.Key))
		return
	}
	byKey[string(kv.Key)] = schema
}

func (s *schemas) publish(byKey map[string]crdt.Schema) {
	keys := make([]string, 0, len(byKey))
	for key := range byKey {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	all := make(crdt.Schemas, 0, len(keys))
	for _, key := range keys {
		all = append(all, byKey[key])
	}
	s.custom.Store(&all)
}
