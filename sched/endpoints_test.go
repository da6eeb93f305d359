package sched

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func addrs(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestEndpointsOfAPIServers(t *testing.T) {
	tests := []struct {
		name    string
		servers []netip.AddrPort
		slices  map[string][]string // name → addresses
		subsets [][]string
	}{
		{
			"one", addrs("192.0.2.1:6443"),
			map[string][]string{"kubernetes-ipv4-06443": {"192.0.2.1"}},
			[][]string{{"192.0.2.1"}},
		},
		{
			"order and repetition do not matter", addrs("192.0.2.9:6443", "192.0.2.10:6443", "192.0.2.9:6443", "192.0.2.1:6443"),
			map[string][]string{"kubernetes-ipv4-06443": {"192.0.2.1", "192.0.2.9", "192.0.2.10"}},
			[][]string{{"192.0.2.1", "192.0.2.9", "192.0.2.10"}},
		},
		{
			"ports and families apart", addrs("[2001:db8::1]:6443", "192.0.2.1:7443", "192.0.2.2:6443"),
			map[string][]string{
				"kubernetes-ipv4-06443": {"192.0.2.2"},
				"kubernetes-ipv4-07443": {"192.0.2.1"},
				"kubernetes-ipv6-06443": {"2001:db8::1"},
			},
			[][]string{{"192.0.2.2"}, {"192.0.2.1"}, {"2001:db8::1"}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkSlices(t, apiSlices(tt.servers), tt.slices)
			endpoints := apiEndpoints(tt.servers)
			if endpoints.Labels[discoveryv1.LabelSkipMirror] != "true" {
				t.Error("endpoints would be mirrored")
			}
			if len(endpoints.Subsets) != len(tt.subsets) {
				t.Fatalf("%d subsets, want %d", len(endpoints.Subsets), len(tt.subsets))
			}
			for i, want := range tt.subsets {
				var got []string
				for _, a := range endpoints.Subsets[i].Addresses {
					got = append(got, a.IP)
				}
				checkList(t, got, want)
			}
		})
	}
}

func checkSlices(t *testing.T, got map[string]*discoveryv1.EndpointSlice, want map[string][]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d slices, want %d", len(got), len(want))
	}
	for name, addresses := range want {
		slice := got[name]
		if slice == nil {
			t.Errorf("no slice %s", name)
			continue
		}
		if slice.Labels[discoveryv1.LabelServiceName] != "kubernetes" || slice.Namespace != corev1.NamespaceDefault {
			t.Errorf("slice %s belongs to no Service", name)
		}
		var list []string
		for _, e := range slice.Endpoints {
			if !*e.Conditions.Ready {
				t.Errorf("slice %s: %v is not ready", name, e.Addresses)
			}
			list = append(list, e.Addresses...)
		}
		checkList(t, list, addresses)
	}
}

func checkList(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
