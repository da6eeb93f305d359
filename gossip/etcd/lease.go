package etcd

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mootkube/moot/gossip/store"
)

// maxLeaseTTL, in seconds, is etcd's.
const maxLeaseTTL = 9_000_000_000

// leaseService answers the Lease service.
type leaseService struct {
	pb.UnsafeLeaseServer
	identity
	store   Store
	streams *streams
}

func (s *leaseService) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.TTL > maxLeaseTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	id := r.ID
	for id == 0 {
		id = rand.Int64()
	}
	// etcd, too, raises what is shorter than it can keep.
	lease, err := s.store.Grant(ctx, id, max(r.TTL, 1))
	if err != nil {
		return nil, statusError(err)
	}
	return &pb.LeaseGrantResponse{Header: s.headerMessage(s.store.Revision()), ID: lease.ID, TTL: lease.TTL}, nil
}

func (s *leaseService) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := s.store.Revoke(ctx, r.ID); err != nil {
		return nil, statusError(err)
	}
	return &pb.LeaseRevokeResponse{Header: s.headerMessage(s.store.Revision())}, nil
}

// LeaseKeepAlive answers each request of the stream in turn. A lease that does
// not exist is answered with a TTL of zero, which is how clients learn it.
func (s *leaseService) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	return s.streams.serve(stream.Context(), func(context.Context, func(error)) error {
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			// Read before the renewal: a lease revoked later must not look
			// alive at the revision of its revocation.
			revision := s.store.Revision()
			ttl, err := s.store.KeepAlive(r.ID)
			if errors.Is(err, store.ErrLeaseNotFound) {
				ttl, err = 0, nil
			}
			if err != nil {
				return statusError(err)
			}
			if err := stream.Send(&pb.LeaseKeepAliveResponse{Header: s.headerMessage(revision), ID: r.ID, TTL: ttl}); err != nil {
				return err
			}
		}
	})
}

func (s *leaseService) LeaseTimeToLive(_ context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	out := &pb.LeaseTimeToLiveResponse{Header: s.headerMessage(s.store.Revision()), ID: r.ID}
	lease, err := s.store.TimeToLive(r.ID, r.Keys)
	switch {
	case errors.Is(err, store.ErrLeaseNotFound):
		out.TTL = -1
		return out, nil
	case err != nil:
		return nil, statusError(err)
	}
	out.TTL, out.GrantedTTL, out.Keys = lease.Remaining, lease.TTL, lease.Keys
	return out, nil
}

func (s *leaseService) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	ids := s.store.Leases()
	out := &pb.LeaseLeasesResponse{Header: s.headerMessage(s.store.Revision()), Leases: make([]*pb.LeaseStatus, len(ids))}
	for i, id := range ids {
		out.Leases[i] = &pb.LeaseStatus{ID: id}
	}
	return out, nil
}
