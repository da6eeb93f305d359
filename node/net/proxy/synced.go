package proxy

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// syncWatch calls done once, when both kinds of object have been handed to the
// handlers registered before it in full. The proxier is one of those, and writes
// its rules before it returns from the second.
type syncWatch struct {
	done func()

	mu               sync.Mutex
	services, slices bool
	told             bool
}

func newSyncWatch(done func()) *syncWatch { return &syncWatch{done: done} }

func (s *syncWatch) OnServiceSynced()        { s.mark(&s.services) }
func (s *syncWatch) OnEndpointSlicesSynced() { s.mark(&s.slices) }

func (s *syncWatch) mark(kind *bool) {
	s.mu.Lock()
	*kind = true
	tell := s.services && s.slices && !s.told
	s.told = s.told || tell
	s.mu.Unlock()
	if tell {
		s.done()
	}
}

func (s *syncWatch) OnServiceAdd(*corev1.Service)                          {}
func (s *syncWatch) OnServiceUpdate(_, _ *corev1.Service)                  {}
func (s *syncWatch) OnServiceDelete(*corev1.Service)                       {}
func (s *syncWatch) OnEndpointSliceAdd(*discoveryv1.EndpointSlice)         {}
func (s *syncWatch) OnEndpointSliceUpdate(_, _ *discoveryv1.EndpointSlice) {}
func (s *syncWatch) OnEndpointSliceDelete(*discoveryv1.EndpointSlice)      {}
