package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// servedVersion is the etcd version whose API this is, not the version of this
// program. kube-apiserver switches WatchList, consistent reads from its cache
// and manual progress off, without a word, below 3.5.13; RangeStream is 3.7's.
const servedVersion = "3.7.2"

// storageVersion is the etcd data schema the version stands for.
const storageVersion = "3.7.0"

// maintenanceService answers what is served of the Maintenance service.
type maintenanceService struct {
	pb.UnimplementedMaintenanceServer
	identity
	store Store
}

// Status shows this node as a healthy cluster of one: every node is a whole
// member and answers by itself, so it is its own leader.
func (s *maintenanceService) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	revision, size := s.store.Revision(), s.store.Size()
	return &pb.StatusResponse{
		Header:           s.headerMessage(revision),
		Version:          servedVersion,
		StorageVersion:   storageVersion,
		DbSize:           size,
		DbSizeInUse:      size,
		Leader:           s.memberID,
		RaftTerm:         raftTerm,
		RaftIndex:        uint64(revision),
		RaftAppliedIndex: uint64(revision),
		DowngradeInfo:    &pb.DowngradeInfo{},
	}, nil
}

// Alarm lists alarms, of which there are none: a full disk is answered to the
// writes that meet it and clears itself when there is room.
func (s *maintenanceService) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET {
		return nil, status.Error(codes.Unimplemented, "alarms cannot be raised or cleared by hand; free disk space and writes go on by themselves")
	}
	return &pb.AlarmResponse{Header: s.headerMessage(s.store.Revision())}, nil
}

// clusterService answers what is served of the Cluster service.
type clusterService struct {
	pb.UnimplementedClusterServer
	identity
	store     Store
	name      string
	clientURL string
}

func (s *clusterService) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{
		Header: s.headerMessage(s.store.Revision()),
		Members: []*pb.Member{{
			ID:         s.memberID,
			Name:       s.name,
			PeerURLs:   []string{s.clientURL},
			ClientURLs: []string{s.clientURL},
		}},
	}, nil
}
