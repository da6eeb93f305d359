package node

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/pki"
)

const (
	// conflictNews is how old a conflict may be to be told as an Event: as long
	// as Events last.
	conflictNews = time.Hour
	// conflictSettle gathers the conflicts of one merge, conflictRetry is the
	// pause after an Event could not be written.
	conflictSettle = time.Second
	conflictRetry  = 10 * time.Second
)

// conflictPart tells users what merges did not keep, by an Event on the object,
// for as long as this node leads.
func (n *Node) conflictPart(keys *pki.Bundle, r *replica) part {
	return part{name: "conflict events", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		client, err := adminClient(keys)
		if err != nil {
			return err
		}
		ready()
		changed, cancel := r.agent.Subscribe()
		defer cancel()
		told := map[string]bool{}
		for ctx.Err() == nil {
			watcher, err := r.db.Watch(ctx, store.WatchRequest{Key: []byte(store.ConflictPrefix), End: prefixEnd(store.ConflictPrefix)})
			if err != nil {
				return nil // the store is closing
			}
			err = n.tellConflicts(ctx, client, r, told)
			if err != nil && ctx.Err() == nil {
				n.log.Warn("conflicts are not told as Events, trying again", "err", err)
			}
			n.awaitConflicts(ctx, watcher, changed, err != nil)
			watcher.Close()
		}
		return nil
	}}
}

// awaitConflicts blocks until there may be something to tell.
func (n *Node) awaitConflicts(ctx context.Context, watcher *store.Watcher, changed <-chan struct{}, again bool) {
	if again {
		pause(ctx, conflictRetry)
		return
	}
	select {
	case <-ctx.Done():
	case <-changed: // this node may lead now
	case <-watcher.Events():
	}
	pause(ctx, conflictSettle)
}

// tellConflicts writes an Event for each recent conflict that is not in told.
func (n *Node) tellConflicts(ctx context.Context, client kubernetes.Interface, r *replica, told map[string]bool) error {
	if !leads(r.agent) {
		return nil
	}
	conflicts, err := r.db.Conflicts(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	kept := make(map[string]bool, len(conflicts))
	for i := range conflicts {
		c := &conflicts[i]
		name := conflictName(c)
		kept[name] = true
		when := max(c.LostAt, c.KeptAt).Time()
		if told[name] || c.Observed() || now.Sub(when) > conflictNews {
			continue
		}
		object, err := conflictObject(ctx, r.db, c)
		if err != nil {
			return err
		}
		if object != nil {
			if err := writeConflictEvent(ctx, client, name, c, object, now); err != nil {
				return err
			}
		}
		told[name] = true
	}
	for name := range told {
		if !kept[name] {
			delete(told, name)
		}
	}
	return nil
}

func conflictName(c *crdt.Conflict) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%s", c.Key, c.UID, c.Path, c.LostBy, c.KeptBy))
	return fmt.Sprintf("%x", sum[:8])
}

// conflictObject is the object that a conflict is about as it stands now, or as
// it was when it lost; nil when neither is an object.
func conflictObject(ctx context.Context, db *store.Store, c *crdt.Conflict) (*corev1.ObjectReference, error) {
	found, err := db.Range(ctx, store.RangeRequest{Key: []byte(c.Key)})
	if err != nil {
		return nil, err
	}
	value := []byte(c.Lost)
	if len(found.KVs) > 0 {
		value = found.KVs[0].Value
	}
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(value, &object); err != nil || object.Kind == "" || object.Name == "" {
		return nil, nil
	}
	return &corev1.ObjectReference{
		APIVersion: object.APIVersion, Kind: object.Kind,
		Namespace: object.Namespace, Name: object.Name, UID: object.UID,
	}, nil
}

// writeConflictEvent names the place and not the values: they may be secret.
func writeConflictEvent(ctx context.Context, client kubernetes.Interface, name string, c *crdt.Conflict, object *corev1.ObjectReference, now time.Time) error {
	namespace := object.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	what := "The object was changed on two sides of a cut, and one of them was not kept"
	if c.Path != "" {
		what = c.Path + " was changed on two sides of a cut, and one change was not kept"
	}
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "merge." + name, Namespace: namespace},
		InvolvedObject: *object,
		Type:           corev1.EventTypeWarning,
		Reason:         "MergeConflict",
		Message:        fmt.Sprintf("%s (rule: %s); `moot conflicts` shows both", what, c.Rule),
		Source:         corev1.EventSource{Component: "moot"},
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
	_, err := client.CoreV1().Events(namespace).Create(ctx, event, metav1.CreateOptions{})
	switch {
	case err == nil, apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // its namespace went with it
	}
	return fmt.Errorf("write event on %s %s: %w", object.Kind, object.Name, err)
}

// prefixEnd is the end of the range of all keys with a prefix.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}
