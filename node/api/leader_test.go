package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

// noServer stands for the API server behind the filter: it counts what arrives.
type noServer struct{ sent atomic.Int32 }

var errArrived = errors.New("arrived")

func (s *noServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.sent.Add(1)
	return nil, errArrived
}

func TestLeaderOnly(t *testing.T) {
	service := func(name string) string {
		return `{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"` + name + `"}}`
	}
	for _, c := range []struct {
		method, path, body string
		want               bool
	}{
		{"PUT", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boats.example.org/status", "", true},
		{"GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boats.example.org", "", false},
		{"GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "", false},
		{"POST", "/apis/apiregistration.k8s.io/v1/apiservices", service("v1.example.org"), true},
		{"POST", "/apis/apiregistration.k8s.io/v1/apiservices", service("v1.apps"), false},
		{"POST", "/apis/apiregistration.k8s.io/v1/apiservices", service("v1."), false},
		{"POST", "/apis/apiregistration.k8s.io/v1/apiservices", service("v1.apiextensions.k8s.io"), false},
		{"PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps", "", false},
		{"PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps/status", "", false},
		{"PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io/status", "", true},
		{"PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.org/status", "", true},
		{"DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.org", "", true},
		{"DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps", "", false},
		{"GET", "/apis/apiregistration.k8s.io/v1/apiservices", "", false},
		{"DELETE", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/apiserver-x", "", true},
		{"PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/apiserver-x", "", false},
		{"POST", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", "", false},
		{"DELETE", "/apis/coordination.k8s.io/v1/namespaces/default/leases/x", "", false},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "", false},
		{"POST", "/api/v1/namespaces", "", false},
		{"POST", "/apis/networking.k8s.io/v1/ipaddresses", "", false},
		{"POST", "/apis", "", false},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "https://x"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := leaderOnly(r); err != nil || got != c.want {
			t.Errorf("%s %s %s: %v %v", c.method, c.path, c.body, got, err)
		}
	}
}

// Clients as the API server's controllers have them, on a node that does not
// lead, then does.
func TestLeaderWrites(t *testing.T) {
	var leads atomic.Bool
	stopped, asked := make(chan struct{}), make(chan struct{}, 1)
	filter := &leaderWrites{stopped: stopped, leads: func() bool {
		select {
		case asked <- struct{}{}:
		default:
		}
		return leads.Load()
	}}
	server := &noServer{}
	config := &rest.Config{Host: "https://x", Transport: server, ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"}}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return &leaderTransport{next: next, leaderWrites: filter}
	})
	client, err := clientset.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	services := client.ApiregistrationV1().APIServices()
	create := func(ctx context.Context, name string) error {
		_, err := services.Create(ctx, &apiregistration.APIService{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}

	if err := create(t.Context(), "v1.apps"); !errors.Is(err, errArrived) {
		t.Errorf("create of our own: %v", err)
	}
	if err := services.Delete(t.Context(), "v1.example.org", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete: %v, want not found", err)
	}
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := core.CoordinationV1().Leases("kube-system").Delete(t.Context(), "apiserver-x", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete of a lease: %v, want not found", err)
	}
	if n := server.sent.Load(); n != 1 {
		t.Errorf("%d requests have arrived, want 1", n)
	}

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := create(cancelled, "v1.example.org"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled create: %v", err)
	}

	held := make(chan error, 1)
	<-asked // before
	go func() { held <- create(t.Context(), "v1.example.org") }()
	for range 3 { // it waits in the filter
		select {
		case <-asked:
		case err := <-held:
			t.Fatalf("create is not held: %v", err)
		}
	}
	if n := server.sent.Load(); n != 1 {
		t.Errorf("%d requests have arrived before this node leads, want 1", n)
	}
	leads.Store(true)
	if err := <-held; !errors.Is(err, errArrived) {
		t.Errorf("held create: %v", err)
	}
	if err := services.Delete(t.Context(), "v1.example.org", metav1.DeleteOptions{}); !errors.Is(err, errArrived) {
		t.Errorf("delete by the leader: %v", err)
	}
	leads.Store(false)
	go func() { held <- create(t.Context(), "v1.example.org") }()
	close(stopped)
	if err := <-held; !errors.Is(err, errStopped) {
		t.Errorf("held when the server stops: %v", err)
	}
}
