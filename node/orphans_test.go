package node

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/mootkube/moot/gossip/store"
)

// What lacks its namespace or its definition goes at the second sweep and is
// listed; all else stays, whatever its key looks like.
func TestOrphans(t *testing.T) {
	db, err := store.Open(store.DefaultConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- db.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	put := func(key, value string) {
		t.Helper()
		op := store.Op{Kind: store.OpPut, Key: []byte(key), Value: []byte(value)}
		if _, err := db.Txn(t.Context(), store.Txn{Then: []store.Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	object := func(apiVersion, namespace, name string) string {
		return `{"apiVersion":"` + apiVersion + `","kind":"X","metadata":{"namespace":"` + namespace + `","name":"` + name + `","uid":"uid-of-` + name + `"}}`
	}
	orphans := []string{
		"/registry/configmaps/gone/a", "/registry/services/specs/gone/b", "/registry/known.example/shops/gone/c",
		"/registry/gone.example/shops/there/d", "/registry/gone.example/clusters/e",
	}
	put(orphans[0], object("v1", "gone", "a"))
	put(orphans[1], object("v1", "gone", "b"))
	put(orphans[2], object("known.example/v1", "gone", "c"))
	put(orphans[3], object("gone.example/v1", "there", "d"))
	put(orphans[4], object("gone.example/v1", "", "e"))
	for key, value := range map[string]string{
		namespacePrefix + "there":                                 object("v1", "", "there"),
		definitionsPrefix + "shops.known.example":                 object("apiextensions.k8s.io/v1", "", "shops.known.example"),
		"/registry/configmaps/there/f":                            object("v1", "there", "f"),
		"/registry/configmaps/default/g":                          object("v1", "default", "g"),
		"/registry/configmaps/kube-system/h":                      object("v1", "kube-system", "h"),
		"/registry/events/gone/i":                                 object("v1", "gone", "i"),
		"/registry/known.example/shops/there/j":                   object("known.example/v1", "there", "j"),
		"/registry/apiregistration.k8s.io/apiservices/v1.gone.ex": object("apiregistration.k8s.io/v1", "", "v1.gone.ex"),
		"/registry/clusterroles/system:k":                         object("rbac.authorization.k8s.io/v1", "", "system:k"),
		"/registry/ranges/gone/l":                                 "no JSON",
	} {
		put(key, value)
	}
	n := &Node{log: slog.New(slog.DiscardHandler)}
	count := func() int64 {
		t.Helper()
		all, err := db.Range(t.Context(), store.RangeRequest{Key: []byte(objectPrefix), End: prefixEnd(objectPrefix), CountOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		return all.Count
	}
	before := count()
	seen, err := n.sweepOrphans(t.Context(), db, nil)
	if err != nil || len(seen) != len(orphans) || count() != before {
		t.Fatalf("first sweep: %v, %v; %d keys, %d before", seen, err, count(), before)
	}
	// One changes, and is given the time of another sweep.
	put(orphans[0], strings.Replace(object("v1", "gone", "a"), `"X"`, `"Y"`, 1))
	for range 2 {
		if seen, err = n.sweepOrphans(t.Context(), db, seen); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 0 || count() != before-int64(len(orphans)) {
		t.Errorf("in the end: %v; %d keys, %d before", seen, count(), before)
	}
	conflicts, err := db.Conflicts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range conflicts {
		listed = append(listed, c.Key)
		if !strings.HasPrefix(c.UID, "uid-of-") || !strings.Contains(string(c.Lost), c.UID) {
			t.Errorf("listed as %+v", c)
		}
	}
	slices.Sort(listed)
	slices.Sort(orphans)
	if !slices.Equal(listed, orphans) {
		t.Errorf("listed %v, want %v", listed, orphans)
	}
}
