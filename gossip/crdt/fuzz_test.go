package crdt

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"
)

// sampleStates returns the states of a few short histories.
func sampleStates(f *testing.F) []*Record {
	f.Helper()
	objects := sampleObjects(f)
	loose := newAnyKind()
	var all []*Record
	for i, name := range []string{"pod-web-0", "configmap-web", "shop-corner"} {
		w := newWorld(f, rand.New(rand.NewPCG(uint64(i), 9)), objects[name], loose, loose, nil)
		for range 15 {
			w.step()
		}
		all = append(all, w.states...)
	}
	return all
}

func FuzzDecodeVector(f *testing.F) {
	f.Add(Vector{}.Append(nil))
	f.Add(Vector{1: 1, 2: 300, 1 << 63: 1 << 63}.Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := DecodeVector(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v is not ErrMalformed", err)
			}
			return
		}
		if again := v.Append(nil); !bytes.Equal(again, data) {
			t.Fatalf("%x encodes as %x", data, again)
		}
	})
}

func FuzzDecodePaths(f *testing.F) {
	objects := sampleObjects(f)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range []string{"pod-web-0", "deployment-web", "shop-corner"} {
		f.Add(DescribeChange(objects[name], mutate(rng, objects[name]), newAnyKind()).Paths)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodePaths(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v is not ErrMalformed", err)
			}
			return
		}
		again, err := decodePaths(p.encode())
		if err != nil || !bytes.Equal(again.encode(), p.encode()) {
			t.Fatalf("%x does not survive: %v", data, err)
		}
	})
}

// FuzzMeta decodes any bytes as the state of a record, and uses what comes of
// it as a replica would.
func FuzzMeta(f *testing.F) {
	samples := sampleStates(f)
	for _, r := range samples {
		f.Add(r.Meta, r.Value, r.Deleted)
	}
	held := samples[len(samples)-1]
	f.Fuzz(func(t *testing.T, meta, value []byte, deleted bool) {
		r := &Record{Key: held.Key, Dot: Dot{9, 9}, Stamp: 1 << 50, UID: "u", APIVersion: "v1", Meta: meta, Value: value, Deleted: deleted}
		if deleted {
			r.Value = nil
		}
		if r.Valid() != nil {
			Put(r, r.Key, held.Value, Dot{9, 10}, 1<<51, Change{})
			return
		}
		state, err := AppendState(nil, r)
		if err != nil {
			t.Fatalf("a valid record has no state: %v", err)
		}
		if r.Covers(Dot{}) != true || !r.Covers(r.Dot) {
			t.Fatal("a record does not cover itself")
		}
		for _, other := range []*Record{held, samples[0], r} {
			joined, _, conflicts, err := Merge(r, other)
			if err != nil {
				t.Fatalf("merge of valid records: %v", err)
			}
			if err := joined.Valid(); err != nil {
				t.Fatalf("a merge is not valid: %v", err)
			}
			if _, err := json.Marshal(conflicts); err != nil {
				t.Fatalf("encode conflicts: %v", err)
			}
		}
		if again, _ := AppendState(nil, r); !bytes.Equal(again, state) {
			t.Fatal("a merge changed its argument")
		}
		next := Put(r, r.Key, held.Value, Dot{9, 10}, 1, DescribeChange(r.Value, held.Value, newAnyKind()))
		if err := next.Valid(); err != nil || next.Stamp <= r.Stamp {
			t.Fatalf("a put is not valid: %v", err)
		}
	})
}

// FuzzParse holds the reader of JSON against encoding/json.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.50e+10,true,null,"x\u00e9\ud83d\ude00\n"],"b":{}}`, `"\ud800"`, "\"\xff\"", `{"a":1,"a":2}`, ` [ ] `, `01`, `1.`, `-`, `{"\u0061":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n := parse(data)
		if n == nil {
			return
		}
		out := n.append(nil)
		var want, got any
		if err := decodeNumbers(data, &want); err != nil {
			t.Fatalf("%q is no JSON: %v", data, err)
		}
		if err := decodeNumbers(out, &got); err != nil {
			t.Fatalf("%q is written as %q: %v", data, out, err)
		}
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(got)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q is written as %q", data, out)
		}
		again := parse(out)
		if again == nil || !again.equal(n) || !bytes.Equal(again.append(nil), out) {
			t.Fatalf("%q is not canonical", out)
		}
	})
}

func decodeNumbers(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return d.Decode(v)
}

func FuzzReadCRD(f *testing.F) {
	f.Add(sampleObjects(f)["customresourcedefinition-shops.example.com"])
	f.Fuzz(func(t *testing.T, data []byte) {
		schema, err := ReadCRD(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v is not ErrMalformed", err)
			}
			return
		}
		DescribeChange(data, data, schema)
	})
}
