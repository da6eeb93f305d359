package etcd

import (
	"bytes"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/mootkube/moot/gossip/store"
)

// Random answers are encoded by our encoder, decoded by protobuf's, and
// compared with the message built from the generated types.

type dice struct{ *rand.Rand }

// bytes are of a length at which the encoder may behave otherwise.
func (d dice) bytes() []byte {
	lengths := []int{0, 1, 20, 127, 128, wholeBytes - 1, wholeBytes, wholeBytes + 1, 3 * blockBytes}
	b := make([]byte, lengths[d.IntN(len(lengths))])
	for i := range b {
		b[i] = byte(d.Uint32())
	}
	return b
}

func (d dice) number() int64 {
	return []int64{0, 1, 127, 128, 1 << 40, d.Int64(), -1}[d.IntN(7)]
}

func (d dice) header() (header, *pb.ResponseHeader) {
	h := header{identity{d.Uint64(), 1 + uint64(d.IntN(1000))}, d.number()}
	return h, &pb.ResponseHeader{ClusterId: h.clusterID, MemberId: h.memberID, Revision: h.revision, RaftTerm: raftTerm}
}

func (d dice) kv() (store.KeyValue, *mvccpb.KeyValue) {
	kv := store.KeyValue{Key: d.bytes(), Value: d.bytes(), CreateRevision: d.number(), ModRevision: d.number(), Version: d.number(), Lease: d.number()}
	return kv, &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
}

func (d dice) kvs(most int) (kvs []store.KeyValue, messages []*mvccpb.KeyValue) {
	for range d.IntN(most + 1) {
		kv, m := d.kv()
		kvs, messages = append(kvs, kv), append(messages, m)
	}
	return kvs, messages
}

func (d dice) ranged() (*rangeAnswer, *pb.RangeResponse) {
	h, m := d.header()
	kvs, messages := d.kvs(20)
	a := &rangeAnswer{header: &h, kvs: kvs, more: d.IntN(2) == 0, count: d.number(), keysOnly: d.IntN(2) == 0}
	if a.keysOnly {
		for _, kv := range messages {
			kv.Value = nil
		}
	}
	want := &pb.RangeResponse{Header: m, Kvs: messages, More: a.more, Count: a.count}
	if d.IntN(3) == 0 {
		a.header, want.Header = nil, nil
	}
	return a, want
}

func (d dice) putted() (*putAnswer, *pb.PutResponse) {
	h, m := d.header()
	kvs, messages := d.kvs(1)
	want := &pb.PutResponse{Header: m}
	if len(messages) > 0 {
		want.PrevKv = messages[0]
	}
	return &putAnswer{header: h, prev: kvs}, want
}

func (d dice) deleted() (*deleteAnswer, *pb.DeleteRangeResponse) {
	h, m := d.header()
	kvs, messages := d.kvs(5)
	a := &deleteAnswer{header: h, deleted: d.number(), prev: kvs}
	return a, &pb.DeleteRangeResponse{Header: m, Deleted: a.deleted, PrevKvs: messages}
}

func (d dice) transaction() (*txnAnswer, *pb.TxnResponse) {
	h, m := d.header()
	a := &txnAnswer{header: h, succeeded: d.IntN(2) == 0}
	want := &pb.TxnResponse{Header: m, Succeeded: a.succeeded}
	for range d.IntN(6) {
		switch d.IntN(3) {
		case 0:
			part, r := d.ranged()
			a.parts = append(a.parts, txnPart{1, part})
			want.Responses = append(want.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: r}})
		case 1:
			part, r := d.putted()
			a.parts = append(a.parts, txnPart{2, part})
			want.Responses = append(want.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: r}})
		default:
			part, r := d.deleted()
			a.parts = append(a.parts, txnPart{3, part})
			want.Responses = append(want.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: r}})
		}
	}
	return a, want
}

func (d dice) watched() (*eventsAnswer, *pb.WatchResponse) {
	h, m := d.header()
	a := &eventsAnswer{header: h, watchID: d.number(), prevKV: d.IntN(2) == 0}
	want := &pb.WatchResponse{Header: m, WatchId: a.watchID}
	for range d.IntN(10) {
		kv, message := d.kv()
		event, w := store.Event{KV: kv}, &mvccpb.Event{Kv: message}
		if d.IntN(2) == 0 {
			event.Type, w.Type = store.EventDelete, mvccpb.Event_DELETE
		}
		if d.IntN(2) == 0 {
			prev, message := d.kv()
			event.Prev = &prev
			if a.prevKV {
				w.PrevKv = message
			}
		}
		a.events, want.Events = append(a.events, event), append(want.Events, w)
	}
	return a, want
}

func TestAnswers(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(rand.Uint64(), 0))}
	c := newCodec()
	for i := range 3000 {
		var a answer
		var want, got proto.Message
		switch i % 6 {
		case 0:
			a, want = d.ranged()
		case 1:
			var inner *rangeAnswer
			var r *pb.RangeResponse
			inner, r = d.ranged()
			a, want = streamAnswer{inner}, &pb.RangeStreamResponse{RangeResponse: r}
		case 2:
			a, want = d.putted()
		case 3:
			a, want = d.deleted()
		case 4:
			a, want = d.transaction()
		default:
			a, want = d.watched()
		}
		got = want.ProtoReflect().New().Interface()
		parts, err := c.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		encoded := parts.Materialize()
		if len(encoded) != a.length() {
			t.Fatalf("%T: length says %d, encoded are %d", a, a.length(), len(encoded))
		}
		if err := proto.Unmarshal(encoded, got); err != nil {
			t.Fatalf("%T: %v", a, err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("%T:\ngot  %v\nwant %v", a, got, want)
		}
		generated, err := c.Marshal(want)
		if err != nil || !bytes.Equal(generated.Materialize(), encoded) {
			t.Fatalf("%T is encoded otherwise than protobuf does it, %v", a, err)
		}
	}
}

// TestEncodingAllocatesLittle: an answer's own bytes and the list of parts, and
// nothing a key.
func TestEncodingAllocatesLittle(t *testing.T) {
	kvs := make([]store.KeyValue, 100)
	for i := range kvs {
		kvs[i] = store.KeyValue{Key: []byte("/registry/pods/default/web"), Value: make([]byte, 2048), ModRevision: 1 << 58}
	}
	a := &rangeAnswer{header: &header{identity{1, 1}, 1}, kvs: kvs}
	if n := testing.AllocsPerRun(100, func() { marshal(a) }); n > 230 {
		t.Errorf("a list of 100 takes %v allocations", n)
	}
	put := &txnAnswer{header: header{identity{1, 1}, 1 << 58}, succeeded: true, parts: []txnPart{{2, &putAnswer{header: header{revision: 1 << 58}}}}}
	if n := testing.AllocsPerRun(100, func() { marshal(put) }); n > 4 {
		t.Errorf("a transaction takes %v allocations", n)
	}
}
