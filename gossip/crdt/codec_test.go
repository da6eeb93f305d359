package crdt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func sampleRecord() *Record {
	return &Record{
		Key:        []byte("/registry/pods/default/web"),
		Value:      []byte("value"),
		Dot:        Dot{Origin: 0x0102030405060708, Seq: 300},
		Stamp:      0x1122334455667788,
		Create:     10 << 16,
		Mod:        12 << 16,
		Version:    3,
		Lease:      -5,
		Deadline:   1_700_000_000_000,
		UID:        "uid",
		APIVersion: "v1",
		Meta:       Put(&Record{Key: []byte("k"), Dot: Dot{Origin: 9, Seq: 1}, Stamp: 77, UID: "uid"}, nil, nil, Dot{Origin: 0x0102030405060708, Seq: 300}, 0x1122334455667788, Change{UID: "uid"}).Meta,
	}
}

func TestRecordGolden(t *testing.T) {
	const want = "0a1a2f72656769737472792f706f64732f64656661756c742f776562" + "210807060504030201" + "28ac02" + "318877665544332211" +
		"5100000a0000000000" + "5900000c0000000000" + "6003" + "68fbffffffffffffffff01" + "7080d095ffbc31" + "7a03756964" + "8201027631" +
		"92013e0103020000000000000009010102030405060708ac020103000000000000000901000000000000004d010102030405060708ac0211223344556677880100" + "120576616c7565"
	got := hex.EncodeToString(AppendRecord(nil, sampleRecord()))
	if got != want {
		t.Errorf("encoding changed\n got %s\nwant %s", got, want)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		want := randomRecord(rng)
		enc := AppendRecord(nil, want)
		got, err := DecodeRecord(enc)
		if err != nil {
			t.Fatalf("decode %+v: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("round trip\n got %+v\nwant %+v", got, want)
		}
		sent := *want
		sent.Create, sent.Mod, sent.Version = 0, 0, 0 // what is local to a replica
		if got, err = DecodeSent(AppendSent(nil, want), want.Value); err != nil || !reflect.DeepEqual(got, &sent) {
			t.Fatalf("sent\n got %+v, %v\nwant %+v", got, err, &sent)
		}
		if len(want.Value) == 0 {
			continue
		}
		if _, err := DecodeSent(enc, want.Value); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a record with a value of its own and revisions of another replica is taken: %v", err)
		}
	}
}

func randomRecord(rng *rand.Rand) *Record {
	r := &Record{
		Key:   []byte{byte(rng.IntN(256)), 'k'},
		Dot:   Dot{Origin: Origin(rng.Uint64() | 1), Seq: rng.Uint64() | 1},
		Stamp: Stamp(rng.Uint64()>>1 | 1<<40),
	}
	if rng.IntN(3) == 0 {
		r.Lease, r.Deadline = rng.Int64(), rng.Int64()
	}
	if rng.IntN(3) == 0 {
		r.Unknown = appendVarint(nil, 100, rng.Uint64()|1)
	}
	r.Mod = Revision(rng.Int64()>>1 + 1<<20)
	if rng.IntN(3) == 0 {
		r.Deleted = true
		return r
	}
	r.Value = bytes.Repeat([]byte{'v'}, 1+rng.IntN(100))
	if rng.IntN(2) == 0 {
		r.Create, r.Version = r.Mod, 1
	} else {
		r.Create, r.Version = r.Mod-1, 2+rng.Int64N(9)
	}
	return r
}

func TestDecodeKeepsUnknownFields(t *testing.T) {
	enc := AppendRecord(nil, sampleRecord())
	newer := protowire.AppendTag(nil, 50, protowire.BytesType)
	newer = protowire.AppendString(newer, "from the future")
	newer = protowire.AppendTag(newer, 51, protowire.Fixed32Type)
	newer = protowire.AppendFixed32(newer, 7)

	r, err := DecodeRecord(append(append([]byte{}, newer...), enc...))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.Unknown, newer) {
		t.Errorf("unknown fields are %x, want %x", r.Unknown, newer)
	}
	if again := AppendRecord(nil, r); !bytes.Equal(again, append(enc, newer...)) {
		t.Errorf("unknown fields did not survive encoding")
	}
}

func TestDecodeRefuses(t *testing.T) {
	with := func(change func(r *Record)) []byte {
		r := sampleRecord()
		change(r)
		return AppendRecord(nil, r)
	}
	full := AppendRecord(nil, sampleRecord())
	cases := map[string][]byte{
		"empty":               nil,
		"truncated":           full[:len(full)-1],
		"no key":              with(func(r *Record) { r.Key = nil }),
		"key too long":        with(func(r *Record) { r.Key = make([]byte, MaxKeyBytes+1) }),
		"no dot":              with(func(r *Record) { r.Dot = Dot{} }),
		"half a dot":          with(func(r *Record) { r.Dot.Seq = 0 }),
		"no stamp":            with(func(r *Record) { r.Stamp = 0 }),
		"meta of no state":    with(func(r *Record) { r.Meta = []byte{metaVersion, 0x80} }),
		"meta cut short":      with(func(r *Record) { r.Meta = r.Meta[:len(r.Meta)-1] }),
		"delete with value":   with(func(r *Record) { r.Deleted = true }),
		"create after mod":    with(func(r *Record) { r.Create = r.Mod + 1 }),
		"version of a create": with(func(r *Record) { r.Create = r.Mod }),
		"negative revision":   with(func(r *Record) { r.Mod = -1 }),
		"wrong wire type":     protowire.AppendVarint(protowire.AppendTag(nil, fieldKey, protowire.VarintType), 1),
		"group as key":        protowire.AppendTag(protowire.AppendTag(nil, fieldKey, protowire.StartGroupType), fieldKey, protowire.EndGroupType),
		"not a boolean":       appendVarint(nil, fieldDeleted, 2),
		"unknown too large":   append(append([]byte{}, full...), appendBytes(nil, 60, make([]byte, maxUnknownBytes+1))...),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeRecord(data); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(AppendRecord(nil, sampleRecord()))
	rng := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		f.Add(AppendRecord(nil, randomRecord(rng)))
	}
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v is not ErrMalformed", err)
			}
			return
		}
		enc := AppendRecord(nil, r)
		again, err := DecodeRecord(enc)
		if err != nil {
			t.Fatalf("decode of an encoded record: %v", err)
		}
		if twice := AppendRecord(nil, again); !bytes.Equal(enc, twice) {
			t.Fatalf("encoding is not stable\n%x\n%x", enc, twice)
		}
	})
}

func BenchmarkAppendRecord(b *testing.B) {
	r := sampleRecord()
	r.Value = make([]byte, 5000)
	buf := make([]byte, 0, 6000)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendRecord(buf[:0], r)
	}
}
