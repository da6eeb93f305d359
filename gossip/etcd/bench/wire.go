package main

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The load generator shares the processors with the servers, so what it does
// itself is kept small: requests and answers pass as bytes, and of an answer
// only what the next request needs is looked at.

// raw is the codec that passes bytes.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	if out := v.(*[]byte); out != nil {
		*out = append((*out)[:0], data.Materialize()...)
	}
	return nil
}

// optimisticPut does as kube-apiserver does: it puts the value if the key is
// still at rev. If not, it takes up the revision the answer tells and tries again.
func optimisticPut(ctx context.Context, conn *grpc.ClientConn, key []byte, rev int64, value []byte) (int64, error) {
	for {
		request, err := proto.Marshal(&pb.TxnRequest{
			Compare: []*pb.Compare{{
				Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
			}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
		})
		if err != nil {
			return 0, err
		}
		var answer []byte
		if err := conn.Invoke(ctx, pb.KV_Txn_FullMethodName, &request, &answer, grpc.ForceCodecV2(raw{})); err != nil {
			return 0, err
		}
		succeeded, at, err := readTxn(answer)
		if err != nil {
			return 0, err
		}
		if succeeded {
			return at, nil
		}
		var r pb.TxnResponse
		if err := proto.Unmarshal(answer, &r); err != nil {
			return 0, err
		}
		kvs := r.Responses[0].GetResponseRange().Kvs
		if rev = 0; len(kvs) > 0 {
			rev = kvs[0].ModRevision
		}
	}
}

// readTxn finds whether a TxnResponse says succeeded, and at which revision.
func readTxn(b []byte) (succeeded bool, revision int64, err error) {
	const header, succeededField, headerRevision = 1, 2, 3
	err = eachField(b, func(field protowire.Number, n uint64, bytes []byte) error {
		switch field {
		case header:
			return eachField(bytes, func(field protowire.Number, n uint64, _ []byte) error {
				if field == headerRevision {
					revision = int64(n)
				}
				return nil
			})
		case succeededField:
			succeeded = n != 0
		}
		return nil
	})
	return succeeded, revision, err
}

// countFields returns how often a message has a field.
func countFields(b []byte, field protowire.Number) (n int, err error) {
	err = eachField(b, func(f protowire.Number, _ uint64, _ []byte) error {
		if f == field {
			n++
		}
		return nil
	})
	return n, err
}

// eachField calls back with the number or the bytes of every field.
func eachField(b []byte, visit func(field protowire.Number, n uint64, bytes []byte) error) error {
	for len(b) > 0 {
		field, kind, used := protowire.ConsumeTag(b)
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		var n uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			n, used = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, used = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("read answer: field %d is of an unknown kind", field)
		}
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		if err := visit(field, n, bytes); err != nil {
			return err
		}
	}
	return nil
}
