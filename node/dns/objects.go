package dns

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mootkube/moot/node/pki"
)

// role names the objects that give the DNS servers their rights.
const role = "system:moot:dns"

const (
	namespace   = "kube-system"
	serviceName = "kube-dns" // the name that tools look for
	configName  = "coredns"
	customName  = "coredns-custom"
	port        = 53
)

// Service is the name of the Service that leads to the DNS servers.
func Service() types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: serviceName}
}

// Objects returns the cluster's side of DNS: the Service with the addresses that
// pods are told, one or one of each family, the rights of the DNS servers of all nodes, and the configuration for users to edit.
// See [Ensure].
func Objects(clusterDNS []netip.Addr, domain string) []runtime.Object {
	labels := map[string]string{
		"k8s-app":                       "kube-dns",
		"kubernetes.io/cluster-service": "true",
		"kubernetes.io/name":            "CoreDNS",
	}
	local := corev1.ServiceInternalTrafficPolicyLocal
	meta := func(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	subject := []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: pki.GroupDNS}}
	ref := func(kind string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role}
	}
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta(namespace, serviceName),
		Spec: corev1.ServiceSpec{
			ClusterIP:             clusterDNS[0].String(),
			InternalTrafficPolicy: &local,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: port, TargetPort: intstr.FromInt32(port)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: port, TargetPort: intstr.FromInt32(port)},
			},
		},
	}
	service.Labels = labels
	if len(clusterDNS) > 1 {
		both := corev1.IPFamilyPolicyRequireDualStack
		service.Spec.IPFamilyPolicy = &both
		for _, ip := range clusterDNS {
			service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, ip.String())
			family := corev1.IPv4Protocol
			if ip.Is6() {
				family = corev1.IPv6Protocol
			}
			service.Spec.IPFamilies = append(service.Spec.IPFamilies, family)
		}
	}
	rbac := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: kind}
	}
	return []runtime.Object{
		&rbacv1.ClusterRole{TypeMeta: rbac("ClusterRole"), ObjectMeta: meta("", role), Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"namespaces", "pods", "services"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}},
		}},
		&rbacv1.ClusterRoleBinding{TypeMeta: rbac("ClusterRoleBinding"), ObjectMeta: meta("", role), Subjects: subject, RoleRef: ref("ClusterRole")},
		&rbacv1.Role{TypeMeta: rbac("Role"), ObjectMeta: meta(namespace, role), Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{configName, customName}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "create", "patch"}},
		}},
		&rbacv1.RoleBinding{TypeMeta: rbac("RoleBinding"), ObjectMeta: meta(namespace, role), Subjects: subject, RoleRef: ref("Role")},
		service,
		&corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: meta(namespace, configName),
			Data:       map[string]string{"Corefile": DefaultCorefile(domain)},
		},
	}
}

// endpointSlice is one node's DNS server behind the Service. It belongs to the
// Node and goes with it. The API takes one address family a slice.
func endpointSlice(nodeName string, nodeUID types.UID, addr netip.Addr) *discoveryv1.EndpointSlice {
	family, suffix := discoveryv1.AddressTypeIPv4, ""
	if addr.Is6() {
		family, suffix = discoveryv1.AddressTypeIPv6, "-ipv6"
	}
	ready := true
	ports := make([]discoveryv1.EndpointPort, 0, 2)
	for _, p := range []struct {
		name     string
		protocol corev1.Protocol
	}{{"dns", corev1.ProtocolUDP}, {"dns-tcp", corev1.ProtocolTCP}} {
		number := int32(port)
		ports = append(ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: &number})
	}
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      serviceName + "-" + nodeName + suffix,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: serviceName,
				discoveryv1.LabelManagedBy:   "dns.moot",
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: nodeUID}},
		},
		AddressType: family,
		Ports:       ports,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			NodeName:   &nodeName,
		}},
	}
}
