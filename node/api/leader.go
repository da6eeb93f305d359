package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregation "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/coordination"
)

// leaderPoll is how often a held write looks whether this node leads by now.
const leaderPoll = 200 * time.Millisecond

// errStopped is what becomes of a write that is held when the server stops.
var errStopped = errors.New("the API server stops before this node leads")

// leaderWrites lets the controllers inside the API server that need one writer
// write on the leader only. They run on every node, with informers and
// discovery that every node needs, and share a client to their own server;
// this stands in that client.
//
// Where this node does not lead, a create or an update is held back until it
// does. By then the leader has mostly done the same, and the write fails as one
// that came late, which the controllers know: they look again. Nothing is
// logged and nothing is tried over and over. A delete is refused at once, in
// the words that say there is nothing to delete: what it was decided on may be
// just what has not arrived here yet. The informers' resync, every few minutes,
// brings it up again where it was right.
type leaderWrites struct {
	leads   func() bool
	stopped <-chan struct{} // the server's end
}

// install puts the filter into the clients that the servers of config make
// from now on.
func (l *leaderWrites) install(config *app.Config) {
	loopback := rest.CopyConfig(config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig)
	loopback.Wrap(func(next http.RoundTripper) http.RoundTripper { return &leaderTransport{next: next, leaderWrites: l} })
	config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig = loopback
	config.ApiExtensions.GenericConfig.LoopbackClientConfig = loopback
	config.Aggregator.GenericConfig.LoopbackClientConfig = loopback
}

type leaderTransport struct {
	*leaderWrites
	next http.RoundTripper
}

// RoundTrip sends r at once, later or not at all.
func (t *leaderTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	write, err := leaderOnly(r)
	refused := err == nil && write && r.Method == http.MethodDelete && !t.leads()
	if err == nil && write && !refused {
		err = t.await(r.Context())
	}
	if err == nil && !refused {
		return t.next.RoundTrip(r)
	}
	if r.Body != nil {
		_ = r.Body.Close() // as a transport does
	}
	if err != nil {
		return nil, err
	}
	return gone(r), nil
}

// await blocks until this node leads.
func (l *leaderWrites) await(ctx context.Context) error {
	if l.leads() {
		return nil
	}
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.stopped:
			return errStopped
		case <-tick.C:
			if l.leads() {
				return nil
			}
		}
	}
}

// gone answers a delete as if its object had gone already.
func gone(r *http.Request) *http.Response {
	const status = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"NotFound","code":404,` +
		`"message":"deletes of this kind are the leader's, and this node does not lead"}`
	return &http.Response{
		Status: "404 Not Found", StatusCode: http.StatusNotFound, Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(status)),
		ContentLength: int64(len(status)), Request: r,
	}
}

// leaderOnly reports whether r is a write that one node is to make for all.
func leaderOnly(r *http.Request) (bool, error) {
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
	default:
		return false, nil
	}
	group, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/apis/"), "/")
	if !ok {
		return false, nil
	}
	_, rest, _ = strings.Cut(rest, "/") // the version
	resource, name, _ := strings.Cut(rest, "/")
	switch {
	case group == apiextensions.GroupName && resource == "customresourcedefinitions":
		return true, nil // conditions, names and the finalizer
	case group == apiregistration.GroupName && resource == "apiservices":
		return leaderOnlyService(r, name)
	case group == coordination.GroupName && resource == "namespaces" && strings.HasPrefix(name, metav1.NamespaceSystem+"/leases/"):
		return r.Method == http.MethodDelete, nil // of other API servers
	}
	return false, nil
}

// leaderOnlyService tells the APIServices that this program brings along, which
// each node makes and calls available, from those of custom resources and of
// other servers.
func leaderOnlyService(r *http.Request, path string) (bool, error) {
	name, _, _ := strings.Cut(path, "/")
	if name == "" {
		var err error
		if name, err = serviceName(r); err != nil {
			return false, err
		}
	}
	version, group, _ := strings.Cut(name, ".")
	gv := schema.GroupVersion{Group: group, Version: version}
	ours := legacyscheme.Scheme.IsVersionRegistered(gv) || group == apiextensions.GroupName || group == apiregistration.GroupName
	return !ours, nil
}

// serviceName reads the name of an APIService out of a copy of r's body.
func serviceName(r *http.Request) (string, error) {
	if r.GetBody == nil {
		return "", errors.New("read APIService to be written: there is no copy of it")
	}
	body, err := r.GetBody()
	if err != nil {
		return "", fmt.Errorf("read APIService to be written: %w", err)
	}
	data, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil {
		return "", fmt.Errorf("read APIService to be written: %w", err)
	}
	var service apiregistrationv1.APIService
	if _, _, err := aggregation.Codecs.UniversalDeserializer().Decode(data, nil, &service); err != nil {
		return "", fmt.Errorf("read APIService to be written: %w", err)
	}
	return service.Name, nil
}
