package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mootkube/moot/gossip/store"
)

// The answers below are the messages of the same names in etcd's rpc.proto and
// kv.proto, whose field numbers they use. Each has its length beside its
// encoding; TestAnswers holds both to protobuf's own decoder.

// header is ResponseHeader.
type header struct {
	identity
	revision int64
}

func (h *header) length() int {
	return numberLength(h.clusterID) + numberLength(h.memberID) + numberLength(uint64(h.revision)) + numberLength(h.term())
}

func (h *header) encode(e *encoder) {
	e.number(1, h.clusterID)
	e.number(2, h.memberID)
	e.number(3, uint64(h.revision))
	e.number(4, h.term())
}

// term is left out, with the IDs, in headers inside a transaction.
func (h *header) term() uint64 {
	if h.memberID == 0 {
		return 0
	}
	return raftTerm
}

func (h *header) field(e *encoder) {
	e.open(1, h.length())
	h.encode(e)
}

func kvLength(kv *store.KeyValue, keysOnly bool) int {
	n := bytesLength(kv.Key) + numberLength(uint64(kv.CreateRevision)) + numberLength(uint64(kv.ModRevision)) +
		numberLength(uint64(kv.Version)) + numberLength(uint64(kv.Lease))
	if !keysOnly {
		n += bytesLength(kv.Value)
	}
	return n
}

// encodeOverhead is more than any tags and lengths around a KeyValue take.
const encodeOverhead = 64

// encodeKV writes a KeyValue as a field.
func encodeKV(e *encoder, field byte, kv *store.KeyValue, keysOnly bool) {
	length := kvLength(kv, keysOnly)
	own := length
	if len(kv.Value) >= wholeBytes {
		own -= len(kv.Value)
	}
	e.reserve(max(own, 0) + encodeOverhead)
	e.open(field, length)
	e.bytes(1, kv.Key)
	e.number(2, uint64(kv.CreateRevision))
	e.number(3, uint64(kv.ModRevision))
	e.number(4, uint64(kv.Version))
	if !keysOnly {
		e.bytes(5, kv.Value)
	}
	e.number(6, uint64(kv.Lease))
}

func kvsLength(kvs []store.KeyValue, keysOnly bool) int {
	n := 0
	for i := range kvs {
		n += fieldLength(kvLength(&kvs[i], keysOnly))
	}
	return n
}

func encodeKVs(e *encoder, field byte, kvs []store.KeyValue, keysOnly bool) {
	for i := range kvs {
		encodeKV(e, field, &kvs[i], keysOnly)
	}
}

// rangeAnswer is RangeResponse. Without a header it is a chunk of a stream that
// is not the last.
type rangeAnswer struct {
	header   *header
	kvs      []store.KeyValue
	keysOnly bool
	more     bool
	count    int64
}

// newRangeAnswer finishes what the store answered to r.
func newRangeAnswer(h *header, r *pb.RangeRequest, res store.RangeResult) *rangeAnswer {
	if refined(r) {
		refine(r, &res)
	}
	return &rangeAnswer{header: h, kvs: res.KVs, keysOnly: r.KeysOnly, more: res.More, count: res.Count}
}

func (a *rangeAnswer) length() int {
	n := kvsLength(a.kvs, a.keysOnly) + flagLength(a.more) + numberLength(uint64(a.count))
	if a.header != nil {
		n += fieldLength(a.header.length())
	}
	return n
}

func (a *rangeAnswer) encode(e *encoder) {
	if a.header != nil {
		a.header.field(e)
	}
	encodeKVs(e, 2, a.kvs, a.keysOnly)
	e.flag(3, a.more)
	e.number(4, uint64(a.count))
}

// streamAnswer is RangeStreamResponse.
type streamAnswer struct{ *rangeAnswer }

func (a streamAnswer) length() int { return fieldLength(a.rangeAnswer.length()) }

func (a streamAnswer) encode(e *encoder) {
	e.open(1, a.rangeAnswer.length())
	a.rangeAnswer.encode(e)
}

// putAnswer is PutResponse.
type putAnswer struct {
	header header
	prev   []store.KeyValue // none or one
}

func (a *putAnswer) length() int {
	return fieldLength(a.header.length()) + kvsLength(a.prev, false)
}

func (a *putAnswer) encode(e *encoder) {
	a.header.field(e)
	encodeKVs(e, 2, a.prev, false)
}

// deleteAnswer is DeleteRangeResponse.
type deleteAnswer struct {
	header  header
	deleted int64
	prev    []store.KeyValue
}

func (a *deleteAnswer) length() int {
	return fieldLength(a.header.length()) + numberLength(uint64(a.deleted)) + kvsLength(a.prev, false)
}

func (a *deleteAnswer) encode(e *encoder) {
	a.header.field(e)
	e.number(2, uint64(a.deleted))
	encodeKVs(e, 3, a.prev, false)
}

// txnAnswer is TxnResponse. Each part is a ResponseOp: one field, whose number
// says which of the answers above it is.
type txnAnswer struct {
	header    header
	succeeded bool
	parts     []txnPart
}

type txnPart struct {
	field byte
	answer
}

func newTxnAnswer(h header, r *pb.TxnRequest, res store.TxnResult) *txnAnswer {
	ops := r.Success
	if !res.Succeeded {
		ops = r.Failure
	}
	a := &txnAnswer{header: h, succeeded: res.Succeeded}
	if len(ops) == 0 {
		return a
	}
	inner := header{revision: res.Revision}
	a.parts = make([]txnPart, len(ops))
	for i, op := range ops {
		result := &res.Results[i]
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			a.parts[i] = txnPart{1, newRangeAnswer(&inner, o.RequestRange, result.Range)}
		case *pb.RequestOp_RequestPut:
			a.parts[i] = txnPart{2, &putAnswer{header: inner, prev: result.Prev}}
		case *pb.RequestOp_RequestDeleteRange:
			a.parts[i] = txnPart{3, &deleteAnswer{header: inner, deleted: result.Deleted, prev: result.Prev}}
		}
	}
	return a
}

func (a *txnAnswer) length() int {
	n := fieldLength(a.header.length()) + flagLength(a.succeeded)
	for i := range a.parts {
		n += fieldLength(fieldLength(a.parts[i].length()))
	}
	return n
}

func (a *txnAnswer) encode(e *encoder) {
	a.header.field(e)
	e.flag(2, a.succeeded)
	for i := range a.parts {
		length := a.parts[i].length()
		e.open(3, fieldLength(length))
		e.open(a.parts[i].field, length)
		a.parts[i].encode(e)
	}
}

// eventsAnswer is WatchResponse with events.
type eventsAnswer struct {
	header  header
	watchID int64
	prevKV  bool
	events  []store.Event
}

func (a *eventsAnswer) length() int {
	n := fieldLength(a.header.length()) + numberLength(uint64(a.watchID))
	for i := range a.events {
		n += fieldLength(a.eventLength(&a.events[i]))
	}
	return n
}

func (a *eventsAnswer) encode(e *encoder) {
	a.header.field(e)
	e.number(2, uint64(a.watchID))
	for i := range a.events {
		event := &a.events[i]
		e.open(11, a.eventLength(event))
		e.flag(1, event.Type == store.EventDelete)
		encodeKV(e, 2, &event.KV, false)
		if a.prevKV && event.Prev != nil {
			encodeKV(e, 3, event.Prev, false)
		}
	}
}

func (a *eventsAnswer) eventLength(event *store.Event) int {
	n := flagLength(event.Type == store.EventDelete) + fieldLength(kvLength(&event.KV, false))
	if a.prevKV && event.Prev != nil {
		n += fieldLength(kvLength(event.Prev, false))
	}
	return n
}
