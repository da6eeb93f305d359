package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

const (
	objectPrefix    = "/registry/"
	namespacePrefix = objectPrefix + "namespaces/"
)

// orphanSweeps are the pauses before the sweeps that follow a change of the
// membership: what a cut has made arrives within seconds of its end. The last
// one goes on, for two members that act at the same moment make orphans as well.
func orphanSweeps() []time.Duration {
	return []time.Duration{time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, 10 * time.Minute}
}

// orphanPart deletes, for as long as this node leads, what was created in a
// namespace or of a custom kind while another member deleted that: no API
// serves it, nobody could delete it, and its pods would run for ever. Each is
// listed as a conflict.
func (n *Node) orphanPart(r *replica) part {
	return part{name: "orphans", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		ready()
		changed, cancel := r.agent.Subscribe()
		defer cancel()
		sweeps := orphanSweeps()
		var seen map[string]int64
		for next := 0; ctx.Err() == nil; next = min(next+1, len(sweeps)-1) {
			timer := time.NewTimer(sweeps[next])
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-changed:
				timer.Stop()
				next = -1 // the first pause is next
				continue
			}
			if !leads(r.agent) {
				seen = nil
				continue
			}
			var err error
			if seen, err = n.sweepOrphans(ctx, r.db, seen); err != nil && ctx.Err() == nil {
				n.log.Warn("orphans are not all gone, trying again", "err", err)
			}
		}
		return nil
	}}
}

// sweepOrphans deletes the orphans that the sweep before has seen as well, with
// the same revision, and returns those that are new.
func (n *Node) sweepOrphans(ctx context.Context, db *store.Store, before map[string]int64) (map[string]int64, error) {
	keys, err := db.Range(ctx, store.RangeRequest{Key: []byte(objectPrefix), End: prefixEnd(objectPrefix), KeysOnly: true})
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	homes := findHomes(keys.KVs)
	seen := map[string]int64{}
	for _, kv := range keys.KVs {
		key := string(kv.Key)
		if len(homes.missing(key)) == 0 {
			continue
		}
		found, err := db.Range(ctx, store.RangeRequest{Key: kv.Key})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		if len(found.KVs) == 0 {
			continue
		}
		home, uid := homes.orphan(key, found.KVs[0].Value)
		switch {
		case home == "":
		case before[key] != found.KVs[0].ModRevision:
			seen[key] = found.KVs[0].ModRevision
		default:
			if err := deleteOrphan(ctx, db, &found.KVs[0], home, uid); err != nil {
				return seen, err
			}
			n.log.Info("deleted what was created in something that another member had deleted", "key", key, "missing", home)
		}
	}
	return seen, nil
}

// homes are the keys of all namespaces and custom kinds.
type homes map[string]bool

func findHomes(kvs []store.KeyValue) homes {
	h := homes{}
	for _, kv := range kvs {
		if bytes.HasPrefix(kv.Key, []byte(namespacePrefix)) || bytes.HasPrefix(kv.Key, []byte(definitionsPrefix)) {
			h[string(kv.Key)] = true
		}
	}
	return h
}

// missing lists the homes that an object has if its key says what it seems to
// say, and that are not there.
func (h homes) missing(key string) []string {
	parts := strings.Split(strings.TrimPrefix(key, objectPrefix), "/")
	if len(parts) < 3 || parts[0] == "events" { // which are gone in an hour
		return nil
	}
	wanted := []string{namespacePrefix + parts[len(parts)-2]}
	if strings.Contains(parts[0], ".") {
		wanted = append(wanted, definitionsPrefix+parts[1]+"."+parts[0])
	}
	return slices.DeleteFunc(wanted, func(home string) bool { return h[home] })
}

// orphan tells, by the object itself, which home it lacks: empty when none.
func (h homes) orphan(key string, value []byte) (home, uid string) {
	var object metav1.PartialObjectMetadata
	if json.Unmarshal(value, &object) != nil {
		return "", ""
	}
	parts := strings.Split(strings.TrimPrefix(key, objectPrefix), "/")
	for _, home := range h.missing(key) {
		name, namespaced := strings.CutPrefix(home, namespacePrefix)
		switch {
		case namespaced && object.Namespace == name && !lasting(name):
			return home, string(object.UID)
		case !namespaced && custom(parts[0]) && strings.HasPrefix(object.APIVersion, parts[0]+"/"):
			return home, string(object.UID)
		}
	}
	return "", ""
}

// lasting reports whether a namespace cannot be deleted: at the very first
// start objects may be there before it.
func lasting(namespace string) bool {
	return namespace == metav1.NamespaceDefault || strings.HasPrefix(namespace, "kube-")
}

// custom reports whether the kinds of a group, under whose name they are
// stored, have definitions of their own.
func custom(group string) bool {
	return group != "apiextensions.k8s.io" && group != "apiregistration.k8s.io"
}

// deleteOrphan deletes an object and lists it, unless it has changed or its
// home is back.
func deleteOrphan(ctx context.Context, db *store.Store, kv *store.KeyValue, home, uid string) error {
	now := crdt.StampAt(time.Now())
	lost, err := json.Marshal(crdt.Conflict{
		Key: string(kv.Key), UID: uid, Rule: crdt.RuleDeleted, Lost: kv.Value, LostAt: now, KeptAt: now,
	})
	if err != nil {
		return fmt.Errorf("describe orphan %s: %w", kv.Key, err)
	}
	sum := sha256.Sum256(lost)
	_, err = db.Txn(ctx, store.Txn{
		If: []store.Compare{
			{Key: kv.Key, Target: store.TargetMod, Relation: store.Equal, Int: kv.ModRevision},
			{Key: []byte(home), Target: store.TargetCreate, Relation: store.Equal},
		},
		Then: []store.Op{
			{Kind: store.OpDelete, Key: kv.Key},
			{Kind: store.OpPut, Key: append([]byte(store.ConflictPrefix), hex.EncodeToString(sum[:16])...), Value: lost},
		},
	})
	if err != nil {
		return fmt.Errorf("delete orphan %s: %w", kv.Key, err)
	}
	return nil
}
