package pki

// Users and groups in the client certificates. Those that start with system:
// are bound to roles by the API server's own RBAC bootstrap; those that start
// with moot: need a binding.
const (
	UserNodePrefix        = "system:node:"
	UserControllerManager = "system:kube-controller-manager"
	UserScheduler         = "system:kube-scheduler"
	UserProxy             = "system:kube-proxy"

	UserAdmin         = "moot:admin"
	UserLeader        = "moot:leader"
	UserKubeletClient = "moot:kube-apiserver"
	UserDNSPrefix     = "moot:dns:"        // followed by the node's name
	UserVolumePrefix  = "moot:local-path:" // followed by the node's name
	UserFrontProxy    = "moot:front-proxy" // the aggregation layer; extension API servers check it

	GroupMasters = "system:masters"
	GroupNodes   = "system:nodes"

	GroupLeader     = "moot:leader"      // writes the endpoints of default/kubernetes
	GroupKubeletAPI = "moot:kubelet-api" // to be bound to the cluster role system:kubelet-api-admin
	GroupDNS        = "moot:dns"         // reads what the cluster's DNS answers from
	GroupVolume     = "moot:local-path"  // provisions volumes on the node
)

// client is an identity that is kept as a kubeconfig.
type client struct {
	file string
	path func(*Bundle) *string
	leaf leaf
}

func clients(node string) []client {
	return []client{
		{"kubelet", func(b *Bundle) *string { return &b.Kubelet }, leaf{user: UserNodePrefix + node, groups: []string{GroupNodes}}},
		{"controller-manager", func(b *Bundle) *string { return &b.ControllerManager }, leaf{user: UserControllerManager}},
		{"scheduler", func(b *Bundle) *string { return &b.Scheduler }, leaf{user: UserScheduler}},
		{"leader", func(b *Bundle) *string { return &b.Leader }, leaf{user: UserLeader, groups: []string{GroupLeader}}},
		{"proxy", func(b *Bundle) *string { return &b.Proxy }, leaf{user: UserProxy}},
		{"dns", func(b *Bundle) *string { return &b.DNS }, leaf{user: UserDNSPrefix + node, groups: []string{GroupDNS}}},
		{"volume", func(b *Bundle) *string { return &b.Volume }, leaf{user: UserVolumePrefix + node, groups: []string{GroupVolume}}},
	}
}
