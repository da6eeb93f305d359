package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// maxServices is how many cluster addresses there are, of 10.96.0.0/12.
const maxServices = 1 << 19

// api serves what the proxy watches as kube-apiserver does: all objects as
// events, a mark behind the last, and then what changes.
type api struct {
	kinds   map[string]*kind // by path
	version int
}

// kind is the objects of one resource.
type kind struct {
	group   schema.GroupVersion
	objects func(yield func(runtime.Object) bool)
	mark    func(metav1.ObjectMeta) runtime.Object // an object that is nothing but this
	changes chan runtime.Object
}

const slicesPath = "/apis/discovery.k8s.io/v1/endpointslices"

func newAPI(services int) *api {
	each := func(object func(i int) runtime.Object) func(yield func(runtime.Object) bool) {
		return func(yield func(runtime.Object) bool) {
			for i := range services {
				if !yield(object(i)) {
					return
				}
			}
		}
	}
	return &api{version: 1, kinds: map[string]*kind{
		"/api/v1/services": {
			group: corev1.SchemeGroupVersion, objects: each(func(i int) runtime.Object { return serviceNumber(i) }),
			mark: func(m metav1.ObjectMeta) runtime.Object { return &corev1.Service{ObjectMeta: m} },
		},
		slicesPath: {
			group: discoveryv1.SchemeGroupVersion, objects: each(func(i int) runtime.Object { return sliceNumber(i, livePort) }),
			mark:    func(m metav1.ObjectMeta) runtime.Object { return &discoveryv1.EndpointSlice{ObjectMeta: m} },
			changes: make(chan runtime.Object),
		},
		"/apis/networking.k8s.io/v1/servicecidrs": {
			group: networkingv1.SchemeGroupVersion, objects: func(func(runtime.Object) bool) {},
			mark: func(m metav1.ObjectMeta) runtime.Object { return &networkingv1.ServiceCIDR{ObjectMeta: m} },
		},
		"/api/v1/nodes": {
			group: corev1.SchemeGroupVersion,
			objects: func(yield func(runtime.Object) bool) {
				yield(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, ResourceVersion: "1"}})
			},
			mark: func(m metav1.ObjectMeta) runtime.Object { return &corev1.Node{ObjectMeta: m} },
		},
	}}
}

// setFirstPort moves the endpoints of the first Service to another port. It
// blocks until the change is on its way to the watcher.
func (a *api) setFirstPort(port int32) {
	a.version++
	s := sliceNumber(0, port)
	s.ResourceVersion = strconv.Itoa(a.version)
	a.kinds[slicesPath].changes <- s
}

// ServeHTTP is part of http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k := a.kinds[r.URL.Path]
	switch {
	case r.Method == http.MethodPost: // the proxy's Events
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.WriteHeader(http.StatusCreated)
		_, _ = io.Copy(w, r.Body)
	case k == nil || r.URL.Query().Get("watch") == "":
		http.NotFound(w, r)
	default:
		_ = k.serve(w, r) // the watcher is gone
	}
}

func (k *kind) serve(w http.ResponseWriter, r *http.Request) error {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		return fmt.Errorf("find codec of %s", runtime.ContentTypeProtobuf)
	}
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	frames := info.StreamSerializer.NewFrameWriter(w)
	codec := scheme.Codecs.EncoderForVersion(info.Serializer, k.group)
	send := func(what watch.EventType, object runtime.Object) error {
		var raw bytes.Buffer
		if err := codec.Encode(object, &raw); err != nil {
			return err
		}
		event := &metav1.WatchEvent{Type: string(what), Object: runtime.RawExtension{Raw: raw.Bytes()}}
		return info.StreamSerializer.Encode(event, frames)
	}
	flush := http.NewResponseController(w).Flush
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for object := range k.objects {
			if err := send(watch.Added, object); err != nil {
				return err
			}
		}
		end := k.mark(metav1.ObjectMeta{ResourceVersion: "1", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}})
		if err := send(watch.Bookmark, end); err != nil {
			return err
		}
	}
	for {
		if err := flush(); err != nil {
			return err
		}
		select {
		case object := <-k.changes:
			if err := send(watch.Modified, object); err != nil {
				return err
			}
		case <-r.Context().Done():
			return nil
		}
	}
}

// clusterAddr is that of a Service, on port 80.
func clusterAddr(i int) [4]byte {
	i += 10
	return [4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}
}

func serviceNumber(i int) *corev1.Service {
	addr := netip.AddrFrom4(clusterAddr(i)).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: addr, ClusterIPs: []string{addr},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func sliceNumber(i int, port int32) *discoveryv1.EndpointSlice {
	name, protocol, node, yes := "http", corev1.ProtocolTCP, nodeName, true
	var endpoints []discoveryv1.Endpoint
	for _, a := range podAddrs {
		endpoints = append(endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4(a).String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		})
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("web-%d-x", i), ResourceVersion: "1",
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("web-%d", i)},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
}
