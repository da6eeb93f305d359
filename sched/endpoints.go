package sched

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	apiService = "kubernetes" // in the namespace default
	apiPort    = "https"      // name of its port

	endpointsCheck = 30 * time.Second // how often they are compared unasked
	endpointsRetry = time.Second      // after a failure
)

// keepEndpoints keeps the endpoints of default/kubernetes at the live API
// servers until ctx ends; changed says that it is worth asking again. Upstream's API servers would each write themselves,
// and fight over it when they do not see each other.
func (t *term) keepEndpoints(ctx context.Context, client kubernetes.Interface, changed <-chan struct{}) error {
	var known []netip.AddrPort
	for {
		// An empty list is not believed: this node's own API server lives.
		if now := t.cfg.APIServers(); len(now) > 0 {
			known = now
		}
		next := endpointsCheck
		if len(known) > 0 {
			if err := writeEndpoints(ctx, client, known); err != nil && ctx.Err() == nil {
				t.cfg.Log.Warn("cannot write the endpoints of default/kubernetes", "err", err)
				next = endpointsRetry
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func writeEndpoints(ctx context.Context, client kubernetes.Interface, servers []netip.AddrPort) error {
	if err := writeSlices(ctx, client, apiSlices(servers)); err != nil {
		return err
	}
	api, want := client.CoreV1().Endpoints(corev1.NamespaceDefault), apiEndpoints(servers)
	have, err := api.Get(ctx, apiService, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
	case err != nil:
	case apiequality.Semantic.DeepEqual(have.Subsets, want.Subsets) && have.Labels[discoveryv1.LabelSkipMirror] == "true":
		return nil
	default:
		have.Subsets = want.Subsets
		have.Labels = withLabel(have.Labels, discoveryv1.LabelSkipMirror, "true")
		_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

// writeSlices makes the Service's slices those in want, by name.
func writeSlices(ctx context.Context, client kubernetes.Interface, want map[string]*discoveryv1.EndpointSlice) error {
	api := client.DiscoveryV1().EndpointSlices(corev1.NamespaceDefault)
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + apiService})
	if err != nil {
		return fmt.Errorf("list endpoint slices: %w", err)
	}
	for i := range list.Items {
		have := &list.Items[i]
		slice := want[have.Name]
		switch {
		case slice == nil || slice.AddressType != have.AddressType:
			err = api.Delete(ctx, have.Name, metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				err = nil
			}
		case apiequality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) && apiequality.Semantic.DeepEqual(have.Ports, slice.Ports):
			delete(want, have.Name)
		default:
			have.Endpoints, have.Ports = slice.Endpoints, slice.Ports
			_, err = api.Update(ctx, have, metav1.UpdateOptions{})
			delete(want, have.Name)
		}
		if err != nil {
			return fmt.Errorf("write endpoint slice %s: %w", have.Name, err)
		}
	}
	for name, slice := range want {
		if _, err := api.Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("write endpoint slice %s: %w", name, err)
		}
	}
	return nil
}

// byPort groups the servers, in a fixed order, by family and port.
func byPort(servers []netip.AddrPort) [][]netip.AddrPort {
	servers = slices.Clone(servers)
	slices.SortFunc(servers, func(a, b netip.AddrPort) int {
		return cmp.Or(strings.Compare(groupName(a), groupName(b)), a.Addr().Compare(b.Addr()))
	})
	var groups [][]netip.AddrPort
	for i, server := range slices.Compact(servers) {
		if i == 0 || groupName(groups[len(groups)-1][0]) != groupName(server) {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], server)
	}
	return groups
}

func groupName(server netip.AddrPort) string {
	family := "ipv6"
	if server.Addr().Is4() {
		family = "ipv4"
	}
	return fmt.Sprintf("%s-%s-%05d", apiService, family, server.Port())
}

// apiSlices is the Service's slices by name: one for each family and port, for
// all addresses of a slice share both.
func apiSlices(servers []netip.AddrPort) map[string]*discoveryv1.EndpointSlice {
	out := map[string]*discoveryv1.EndpointSlice{}
	ready, protocol, portName := true, corev1.ProtocolTCP, apiPort
	for _, group := range byPort(servers) {
		port, kind := int32(group[0].Port()), discoveryv1.AddressTypeIPv4
		if group[0].Addr().Is6() {
			kind = discoveryv1.AddressTypeIPv6
		}
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name: groupName(group[0]), Namespace: corev1.NamespaceDefault,
				Labels: map[string]string{
					discoveryv1.LabelServiceName: apiService, discoveryv1.LabelManagedBy: "moot",
				},
			},
			AddressType: kind,
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
		}
		for _, server := range group {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses:  []string{server.Addr().String()},
				Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			})
		}
		out[slice.Name] = slice
	}
	return out
}

// apiEndpoints is the same for clients of the older kind. It is not to be
// mirrored into further slices.
func apiEndpoints(servers []netip.AddrPort) *corev1.Endpoints { //nolint:staticcheck // old clients still read them
	out := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ //nolint:staticcheck // as above
		Name: apiService, Namespace: corev1.NamespaceDefault,
		Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
	}}
	for _, group := range byPort(servers) {
		subset := corev1.EndpointSubset{ //nolint:staticcheck // as above
			Ports: []corev1.EndpointPort{{Name: apiPort, Port: int32(group[0].Port()), Protocol: corev1.ProtocolTCP}},
		}
		for _, server := range group {
			subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: server.Addr().String()})
		}
		out.Subsets = append(out.Subsets, subset)
	}
	return out
}

func withLabel(labels map[string]string, key, value string) map[string]string {
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	return labels
}
