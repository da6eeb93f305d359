package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mootkube/moot/gossip/store"
)

// statusError turns an error of the store into the status error etcd would
// have answered with.
func statusError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, store.ErrFutureRevision):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, store.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case errors.Is(err, store.ErrLeaseExists):
		return rpctypes.ErrGRPCLeaseExist
	case errors.Is(err, store.ErrKeyNotFound):
		return rpctypes.ErrGRPCKeyNotFound
	case errors.Is(err, store.ErrTooLarge):
		return rpctypes.ErrGRPCRequestTooLarge
	case errors.Is(err, store.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	case errors.Is(err, store.ErrDuplicateKey):
		return rpctypes.ErrGRPCDuplicateKey
	case errors.Is(err, store.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}
