package pki

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Params is what the certificates say about this node.
type Params struct {
	NodeName      string       // Kubernetes node name
	NodeIPs       []netip.Addr // addresses the node is reached at, at least one
	ServiceIP     netip.Addr   // address of the Service default/kubernetes: the first of the Service network
	ClusterDomain string       // DNS domain of the cluster
	ExtraSANs     []string     // further names and addresses of the API server, as users give them
	APIPort       int          // TCP port of the API server on this node

	// AdminKubeconfig is where the administrator's kubeconfig goes; by
	// default admin.kubeconfig beside the others.
	AdminKubeconfig string
}

// Validate says what is missing, all of it at once.
func (p *Params) Validate() error {
	var errs []error
	if p.NodeName == "" {
		errs = append(errs, errors.New("node name is empty"))
	}
	if len(p.NodeIPs) == 0 {
		errs = append(errs, errors.New("node has no address"))
	}
	for _, ip := range append(slices.Clone(p.NodeIPs), p.ServiceIP) {
		if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
			errs = append(errs, fmt.Errorf("address %q cannot be in a certificate", ip))
		}
	}
	if p.ClusterDomain == "" {
		errs = append(errs, errors.New("cluster domain is empty"))
	}
	if slices.Contains(p.ExtraSANs, "") {
		errs = append(errs, errors.New("an extra name of the API server is empty"))
	}
	if p.APIPort < 1 || p.APIPort > 65535 {
		errs = append(errs, fmt.Errorf("API port %d is not a TCP port", p.APIPort))
	}
	return errors.Join(errs...)
}

// clockFloor is earlier than any true time: a machine without a clock battery
// starts before it, and an authority made then would be expired for others.
func clockFloor() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// apiServer lists the names and addresses clients reach the API server by.
func (p *Params) apiServer() leaf {
	l := leaf{
		user: "kube-apiserver",
		names: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + p.ClusterDomain, p.NodeName,
		},
		addresses: append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), p.ServiceIP}, p.NodeIPs...),
	}
	for _, san := range p.ExtraSANs {
		if ip, err := netip.ParseAddr(san); err == nil {
			l.addresses = append(l.addresses, ip.Unmap().WithZone(""))
		} else {
			l.names = append(l.names, san)
		}
	}
	l.names, l.addresses = unique(l.names), unique(l.addresses)
	return l
}

// kubelet lists the names and addresses the API servers reach the kubelet by.
func (p *Params) kubelet() leaf {
	return leaf{
		user:      UserNodePrefix + p.NodeName,
		groups:    []string{GroupNodes},
		names:     []string{p.NodeName},
		addresses: unique(p.NodeIPs),
	}
}

// unique drops repetitions and keeps the order, for it is compared with that
// of an issued certificate.
func unique[T comparable](list []T) []T {
	var out []T
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
