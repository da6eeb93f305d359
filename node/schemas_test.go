package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/store"
)

const definition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"shops.example.com"},
"spec":{"group":"example.com","names":{"kind":"Shop","plural":"shops"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,
"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"tills":{"type":"array",
"x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["name"],"items":{"type":"object","properties":{"name":{"type":"string"}}}}}}}}}}]}}`

func TestSchemasFollowDefinitions(t *testing.T) {
	db, err := store.Open(store.DefaultConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran, followed := make(chan error, 1), make(chan struct{})
	go func() { ran <- db.Run(ctx) }()
	s := newSchemas()
	go func() {
		defer close(followed)
		s.follow(ctx, db, slog.New(slog.DiscardHandler))
	}()
	if s.Type("apps/v1", "Deployment") == nil {
		t.Error("a built-in kind is not known")
	}
	write := func(op store.Op) {
		t.Helper()
		if _, err := db.Txn(t.Context(), store.Txn{Then: []store.Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	await := func(known bool) {
		t.Helper()
		tick, late := time.NewTicker(time.Millisecond), time.After(time.Minute)
		defer tick.Stop()
		for (s.Type("example.com/v1", "Shop") != nil) != known {
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("the kind stays known=%v", !known)
			}
		}
	}
	key := []byte(definitionsPrefix + "shops.example.com")
	write(store.Op{Kind: store.OpPut, Key: []byte(definitionsPrefix + "bad"), Value: []byte("{")})
	write(store.Op{Kind: store.OpPut, Key: key, Value: []byte(definition)})
	await(true)
	write(store.Op{Kind: store.OpDelete, Key: key})
	await(false)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	<-followed
}
