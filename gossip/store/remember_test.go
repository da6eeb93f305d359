package store

import (
	"testing"

	"github.com/mootkube/moot/gossip/crdt"
)

func TestRemembered(t *testing.T) {
	a, _ := start(t, testConfig(t))
	cfg := testConfig(t)
	cfg.Node = 2
	b, _ := start(t, cfg)
	key := []byte("/registry/things/x")
	write := func(op Op) {
		t.Helper()
		if _, err := a.Txn(t.Context(), Txn{Then: []Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.Remembered(key); got != nil {
		t.Errorf("of a key never seen: %v", got)
	}
	var past []crdt.Vector
	for range 3 {
		write(Op{Kind: OpPut, Key: key, Value: []byte("a")})
		if got := a.Remembered(key); got != nil {
			t.Errorf("of a key that holds something: %v", got)
		}
		write(Op{Kind: OpDelete, Key: key})
		a.SetStable(a.Vector()) // as with no peers
		past = append(past, a.Remembered(key))
	}
	for i, v := range past {
		if len(v) == 0 || i > 0 && past[i-1].Includes(v) {
			t.Errorf("after delete %d: %v", i, past)
		}
	}
	tail, err := a.Tail(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	f, err := tail.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(t.Context(), f.Records, f.Vector); err != nil {
		t.Fatal(err)
	}
	if got := b.Remembered(key); string(got.Append(nil)) != string(past[2].Append(nil)) {
		t.Errorf("a peer remembers %v, want %v", got, past[2])
	}
}
