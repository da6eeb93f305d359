package etcd

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// refusals says, for each method of the API that is not served, what to do
// instead. A service without a method stands for all its methods.
func refusals() map[string]string {
	const (
		backup  = "copy the data directory of a stopped node, or of a file system snapshot"
		members = "nodes join and leave by themselves, see moot up"
		access  = "there is no etcd user database; access is by the socket's file mode, users and roles are Kubernetes RBAC's"
	)
	return map[string]string{
		"/etcdserverpb.Auth": access,

		"/etcdserverpb.Cluster/MemberAdd":     members,
		"/etcdserverpb.Cluster/MemberRemove":  members,
		"/etcdserverpb.Cluster/MemberUpdate":  members,
		"/etcdserverpb.Cluster/MemberPromote": members,

		"/etcdserverpb.Maintenance/Defragment": "the store reclaims space in the background; compact to let it drop history",
		"/etcdserverpb.Maintenance/Snapshot":   backup,
		"/etcdserverpb.Maintenance/Hash":       "nodes keep histories of their own, so hashes of etcd's kind never agree; moot status compares replicas",
		"/etcdserverpb.Maintenance/HashKV":     "nodes keep histories of their own, so hashes of etcd's kind never agree; moot status compares replicas",
		"/etcdserverpb.Maintenance/MoveLeader": "there is no raft leader; every node serves reads and writes",
		"/etcdserverpb.Maintenance/Downgrade":  "there is no cluster version to lower; install the older program",
	}
}

// refuse answers every method that is not registered.
func refuse() grpc.StreamHandler {
	reasons := refusals()
	return func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		reason, ok := reasons[method]
		if !ok {
			reason, ok = reasons[serviceOf(method)]
		}
		if !ok {
			return status.Errorf(codes.Unimplemented, "%s is not part of the etcd v3 API", method)
		}
		return status.Errorf(codes.Unimplemented, "%s is not served: %s", method, reason)
	}
}

// serviceOf cuts the method off a full method name.
func serviceOf(method string) string {
	for i := len(method) - 1; i > 0; i-- {
		if method[i] == '/' {
			return method[:i]
		}
	}
	return method
}

// served returns the description of a service with only the named methods, so
// that the others reach refuse.
func served(desc grpc.ServiceDesc, methods ...string) *grpc.ServiceDesc {
	desc.Methods = slices.DeleteFunc(slices.Clone(desc.Methods), func(m grpc.MethodDesc) bool {
		return !slices.Contains(methods, m.MethodName)
	})
	desc.Streams = slices.DeleteFunc(slices.Clone(desc.Streams), func(s grpc.StreamDesc) bool {
		return !slices.Contains(methods, s.StreamName)
	})
	return &desc
}

// register adds every served method to g.
func (s *Server) register(g *grpc.Server) {
	id := identity{clusterID: s.cfg.ClusterID, memberID: s.cfg.MemberID}
	g.RegisterService(kvDesc(), &kvService{identity: id, store: s.cfg.Store, maxTxnOps: s.cfg.MaxTxnOps})
	g.RegisterService(&pb.Watch_ServiceDesc, &watchService{
		identity:         id,
		store:            s.cfg.Store,
		streams:          &s.streams,
		maxWatches:       s.cfg.MaxWatches,
		progressInterval: s.cfg.ProgressInterval,
	})
	g.RegisterService(&pb.Lease_ServiceDesc, &leaseService{identity: id, store: s.cfg.Store, streams: &s.streams})
	g.RegisterService(served(pb.Maintenance_ServiceDesc, "Status", "Alarm"), &maintenanceService{identity: id, store: s.cfg.Store})
	g.RegisterService(served(pb.Cluster_ServiceDesc, "MemberList"), &clusterService{identity: id, store: s.cfg.Store, name: s.cfg.Name, clientURL: s.clientURL()})
}
