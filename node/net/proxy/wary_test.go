package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/proxy"
)

// told is a provider that keeps the slices it was told of.
type told struct {
	proxy.Provider
	slices map[string]*discoveryv1.EndpointSlice
}

func (t *told) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) {
	if t.slices[s.Name] != nil {
		panic("added twice")
	}
	t.slices[s.Name] = s
}

func (t *told) OnEndpointSliceUpdate(before, s *discoveryv1.EndpointSlice) {
	if t.slices[s.Name] != before {
		panic("the slice before is not the one that was passed on")
	}
	t.slices[s.Name] = s
}

func (t *told) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) { delete(t.slices, s.Name) }

// ready lists the addresses that may be used.
func (t *told) ready() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(t.slices)) {
		for i := range t.slices[name].Endpoints {
			if e := &t.slices[name].Endpoints[i]; ready(e) {
				out = append(out, e.Addresses[0])
			}
		}
	}
	return strings.Join(out, " ")
}

// sliceOf has an endpoint of each node, none for "".
func sliceOf(name, service string, nodes ...string) *discoveryv1.EndpointSlice {
	port, protocol, yes := int32(80), corev1.ProtocolTCP, true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: &port, Protocol: &protocol}},
	}
	for i, node := range nodes {
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", len(name), i+1)}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}
		if node != "" {
			e.NodeName = &node
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func TestWary(t *testing.T) {
	to := &told{slices: map[string]*discoveryv1.EndpointSlice{}}
	var gone []lostEndpoint
	w := newWary(to, func(l []lostEndpoint) { gone = append(gone, l...) })
	expect := func(what, want string) {
		t.Helper()
		if got := to.ready(); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	w.OnEndpointSliceAdd(sliceOf("a", "web", "n1", "n2"))
	w.OnEndpointSliceAdd(sliceOf("bb", "web", "n3", ""))
	expect("at first", "10.42.1.1 10.42.1.2 10.42.2.1 10.42.2.2")
	lost := func(what, want string) {
		t.Helper()
		var got []string
		for _, e := range gone {
			got = append(got, e.addr.String()+map[bool]string{true: "?"}[e.suspect])
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: lost %v, want %s", what, got, want)
		}
		gone = nil
	}
	w.doubt(map[string]Doubt{"n2": Suspect})
	expect("one suspect", "10.42.1.1 10.42.2.1 10.42.2.2")
	lost("one suspect", "10.42.1.2:80?")
	w.OnEndpointSliceUpdate(nil, sliceOf("a", "web", "n1", "n2", "n2"))
	expect("an update meanwhile", "10.42.1.1 10.42.2.1 10.42.2.2")
	w.doubt(map[string]Doubt{"n2": Dead, "n3": Suspect})
	expect("one dead, one suspect", "10.42.1.1 10.42.2.2")
	lost("one dead, one suspect", "10.42.1.2:80 10.42.1.3:80 10.42.2.1:80?")
	w.doubt(map[string]Doubt{"n2": Dead, "n3": Suspect})
	lost("told twice", "")
	w.doubt(map[string]Doubt{"n2": Suspect, "n3": Suspect})
	lost("the dead may be back", "")
	w.doubt(map[string]Doubt{"n2": Dead, "n3": Suspect})
	lost("dead again", "10.42.1.2:80 10.42.1.3:80")
	// Only what is suspect is left of the Service: better than nothing.
	w.OnEndpointSliceUpdate(nil, sliceOf("a", "web", "n2"))
	w.OnEndpointSliceUpdate(nil, sliceOf("bb", "web", "n3"))
	expect("suspects alone", "10.42.2.1")
	w.doubt(map[string]Doubt{"n2": Dead, "n3": Dead})
	expect("the dead alone", "")
	w.doubt(nil)
	expect("back again", "10.42.1.1 10.42.2.1")
	gone = nil
	w.doubt(map[string]Doubt{"n2": Suspect, "n3": Suspect})
	lost("nobody else to turn to", "")
	w.doubt(map[string]Doubt{"n3": Suspect})
	lost("one of them is back", "10.42.2.1:80?")
	w.doubt(nil)
	w.OnEndpointSliceDelete(sliceOf("bb", "web", "n3"))
	expect("one slice less", "10.42.1.1")
	before := sliceOf("a", "web", "n2")
	w.OnEndpointSliceUpdate(before, sliceOf("a", "other", "n2"))
	w.doubt(map[string]Doubt{"n2": Dead})
	expect("under another Service", "")
	w.OnEndpointSliceDelete(sliceOf("a", "other", "n2"))
	if len(to.slices) != 0 || len(w.slices) != 0 {
		t.Errorf("kept: %v, %v", to.slices, w.slices)
	}
}
