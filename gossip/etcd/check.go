package etcd

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errNestedTxn = status.Error(codes.Unimplemented, "a transaction inside a transaction is not served; put its operations into the outer one")

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if r.SortOrder < pb.RangeRequest_NONE || r.SortOrder > pb.RangeRequest_DESCEND ||
		r.SortTarget < pb.RangeRequest_KEY || r.SortTarget > pb.RangeRequest_VALUE {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if !keyOrdered(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not sort; use Range, or sort what arrives")
	}
	if revisionFiltered(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not filter by revision; use Range")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

func checkTxn(r *pb.TxnRequest, maxOps int) error {
	if max(len(r.Compare), len(r.Success), len(r.Failure)) > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		if c.Result < pb.Compare_EQUAL || c.Result > pb.Compare_NOT_EQUAL ||
			c.Target < pb.Compare_VERSION || c.Target > pb.Compare_LEASE {
			return status.Error(codes.InvalidArgument, "a compare has a target or result this API does not know")
		}
	}
	for _, ops := range [2][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := checkOp(op); err != nil {
				return err
			}
		}
	}
	for _, ops := range [2][]*pb.RequestOp{r.Success, r.Failure} {
		if overlaps(ops) {
			return rpctypes.ErrGRPCDuplicateKey
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(r.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(r.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return errNestedTxn
	default:
		return rpctypes.ErrGRPCKeyNotFound
	}
}

// overlaps tells whether a branch puts one key twice, or puts a key that it
// also deletes: the outcome would hang on the order of operations. Branches
// are bounded by MaxTxnOps, so comparing all pairs is cheap enough.
func overlaps(ops []*pb.RequestOp) bool {
	if len(ops) < 2 {
		return false
	}
	for i, op := range ops {
		put := op.GetRequestPut()
		if put == nil {
			continue
		}
		for j, other := range ops {
			if p := other.GetRequestPut(); p != nil && i != j && bytes.Equal(p.Key, put.Key) {
				return true
			}
			if d := other.GetRequestDeleteRange(); d != nil && covers(d.Key, d.RangeEnd, put.Key) {
				return true
			}
		}
	}
	return false
}

// covers tells whether key is in the range [from, end) with etcd's meaning of
// an empty end (the one key) and of "\x00" (no end).
func covers(from, end, key []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(from, key)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(from, key) <= 0
	default:
		return bytes.Compare(from, key) <= 0 && bytes.Compare(key, end) < 0
	}
}
