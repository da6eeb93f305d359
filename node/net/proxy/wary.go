package proxy

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
)

// Doubt is what this node holds of another that may not answer.
type Doubt int

// The doubts, the lesser first.
const (
	Suspect Doubt = iota + 1 // silent; may be back at once
	Dead
)

// wary is a proxy.Provider that takes the pods of nodes this node does not hear
// from out of its Services at once, by its own view of the members: the leader
// writes the same into the EndpointSlices, but a node may be cut off from the
// leader, and its word takes a while. What it passes on are copies of the slices
// with those endpoints not ready.
//
// Where only suspects are left of a Service they stay: a node that is wrong about
// everybody else is likelier than all others failing at once.
//
// What is open to a suspect goes on, as it may be back at once. What is opening to
// one would hang until it is, or is declared dead: where there are others to turn
// to, it is ended, so that the client tries again. A dead node's connections all
// end.
type wary struct {
	proxy.Provider
	// lost is called with the endpoints of nodes that were found dead, and with
	// those of suspects that others stand in for, after the provider was told. It
	// must not block.
	lost func([]lostEndpoint)

	mu     sync.Mutex
	doubts map[string]Doubt // by node
	slices map[types.NamespacedName]map[string]*held
}

// lostEndpoint is one address of a pod on a node that is not heard from.
type lostEndpoint struct {
	addr     netip.AddrPort
	protocol corev1.Protocol
	suspect  bool // not dead: only what is opening to it is lost
}

// held is a slice as the API has it and as it was passed on.
type held struct {
	told, passed *discoveryv1.EndpointSlice
}

func newWary(to proxy.Provider, lost func([]lostEndpoint)) *wary {
	return &wary{Provider: to, lost: lost, slices: map[types.NamespacedName]map[string]*held{}}
}

// doubt takes in whom this node does not hear from now.
func (w *wary) doubt(now map[string]Doubt) {
	w.mu.Lock()
	changed, dead := map[string]bool{}, map[string]bool{}
	for node, d := range now {
		if w.doubts[node] != d {
			changed[node] = true
			dead[node] = d == Dead
		}
	}
	for node := range w.doubts {
		if now[node] == 0 {
			changed[node] = true
		}
	}
	if len(changed) == 0 {
		w.mu.Unlock()
		return
	}
	w.doubts = maps.Clone(now)
	var gone []lostEndpoint
	for service, slices := range w.slices {
		concerned := false
		for _, h := range slices {
			for i := range h.told.Endpoints {
				node := nodeOf(&h.told.Endpoints[i])
				concerned = concerned || changed[node]
				if dead[node] {
					gone = append(gone, addresses(h.told, &h.told.Endpoints[i], false)...)
				}
			}
		}
		if concerned {
			w.passOn(service)
		}
	}
	w.mu.Unlock()
	if len(gone) > 0 && w.lost != nil {
		w.lost(gone)
	}
}

// OnEndpointSliceAdd is part of proxy.Provider.
func (w *wary) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) { w.take(s) }

// OnEndpointSliceUpdate is part of proxy.Provider.
func (w *wary) OnEndpointSliceUpdate(before, s *discoveryv1.EndpointSlice) {
	if before != nil && serviceOf(before) != serviceOf(s) {
		w.OnEndpointSliceDelete(before)
	}
	w.take(s)
}

// OnEndpointSliceDelete is part of proxy.Provider.
func (w *wary) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	service := serviceOf(s)
	slices := w.slices[service]
	if h := slices[s.Name]; h != nil && h.passed != nil {
		w.Provider.OnEndpointSliceDelete(h.passed)
	}
	delete(slices, s.Name)
	if len(slices) == 0 {
		delete(w.slices, service)
		return
	}
	w.passOn(service) // what is left may be suspects only
}

func (w *wary) take(s *discoveryv1.EndpointSlice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	service := serviceOf(s)
	slices := w.slices[service]
	if slices == nil {
		slices = map[string]*held{}
		w.slices[service] = slices
	}
	if h := slices[s.Name]; h != nil {
		h.told = s
	} else {
		slices[s.Name] = &held{told: s}
	}
	w.passOn(service)
}

// passOn gives the provider the slices of a Service that are other than what it
// was given. The lock is held.
func (w *wary) passOn(service types.NamespacedName) {
	slices := w.slices[service]
	trusted := w.trusted(slices)
	var opening []lostEndpoint
	for _, h := range slices {
		limit := Dead // from here on an endpoint is out
		if trusted[h.told.AddressType] {
			limit = Suspect
		}
		next := w.without(h.told, limit)
		switch {
		case h.passed == nil:
			h.passed = next
			w.Provider.OnEndpointSliceAdd(next)
		case next != h.passed:
			before := h.passed
			h.passed = next
			w.Provider.OnEndpointSliceUpdate(before, next)
			if limit == Suspect {
				opening = append(opening, w.suspectsOf(before, h.told)...)
			}
		}
	}
	if len(opening) > 0 && w.lost != nil {
		w.lost(opening)
	}
}

// suspectsOf returns the endpoints on suspect nodes that were served before. The
// lock is held.
func (w *wary) suspectsOf(before, s *discoveryv1.EndpointSlice) []lostEndpoint {
	served := map[string]bool{}
	for i := range before.Endpoints {
		for _, addr := range before.Endpoints[i].Addresses {
			served[addr] = ready(&before.Endpoints[i])
		}
	}
	var out []lostEndpoint
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; w.doubts[nodeOf(e)] == Suspect && slices.ContainsFunc(e.Addresses, func(addr string) bool { return served[addr] }) {
			out = append(out, addresses(s, e, true)...)
		}
	}
	return out
}

// trusted says in which families the slices of a Service have endpoints that may
// be used on nodes that nothing is held against. The lock is held.
func (w *wary) trusted(slices map[string]*held) map[discoveryv1.AddressType]bool {
	out := map[discoveryv1.AddressType]bool{}
	if len(w.doubts) == 0 {
		return out // nobody asks
	}
	for _, h := range slices {
		for i := range h.told.Endpoints {
			e := &h.told.Endpoints[i]
			if ready(e) && w.doubts[nodeOf(e)] == 0 {
				out[h.told.AddressType] = true
			}
		}
	}
	return out
}

// without returns the slice itself where nothing is to be changed.
func (w *wary) without(s *discoveryv1.EndpointSlice, limit Doubt) *discoveryv1.EndpointSlice {
	out := s
	for i := range s.Endpoints {
		if w.doubts[nodeOf(&s.Endpoints[i])] < limit {
			continue
		}
		if out == s {
			out = s.DeepCopy()
		}
		no := false
		out.Endpoints[i].Conditions.Ready, out.Endpoints[i].Conditions.Serving = &no, &no
	}
	return out
}

func serviceOf(s *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

func nodeOf(e *discoveryv1.Endpoint) string {
	if e.NodeName == nil {
		return ""
	}
	return *e.NodeName
}

// ready takes what is not known for ready, as the API says.
func ready(e *discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

func addresses(s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, suspect bool) []lostEndpoint {
	var out []lostEndpoint
	for _, text := range e.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		for _, port := range s.Ports {
			if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
				continue
			}
			protocol := corev1.ProtocolTCP
			if port.Protocol != nil {
				protocol = *port.Protocol
			}
			out = append(out, lostEndpoint{netip.AddrPortFrom(addr.Unmap(), uint16(*port.Port)), protocol, suspect})
		}
	}
	return out
}
