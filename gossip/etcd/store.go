package etcd

import (
	"context"

	"github.com/mootkube/moot/gossip/store"
)

// Store is the part of a [store.Store] this API is served from.
type Store interface {
	Txn(ctx context.Context, txn store.Txn) (store.TxnResult, error)
	Range(ctx context.Context, r store.RangeRequest) (store.RangeResult, error)
	RangeStream(ctx context.Context, r store.RangeRequest, emit func(store.RangeResult) error) error
	Watch(ctx context.Context, r store.WatchRequest) (*store.Watcher, error)
	Compact(ctx context.Context, revision int64) error
	Revision() int64
	CompactRevision() int64
	Size() int64
	Grant(ctx context.Context, id, ttl int64) (store.Lease, error)
	Revoke(ctx context.Context, id int64) error
	KeepAlive(id int64) (ttl int64, err error)
	TimeToLive(id int64, keys bool) (store.LeaseStatus, error)
	Leases() []int64
}
