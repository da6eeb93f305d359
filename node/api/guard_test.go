package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregation "k8s.io/kube-aggregator/pkg/client/listers/apiregistration/v1"

	"github.com/mootkube/moot/gossip/crdt"
)

// ask sends a request through g as the chain does and returns the query that
// the resources behind it see, "" if the guard answered itself.
func ask(t *testing.T, g *guard, method, target string) (query string, answer *httptest.ResponseRecorder) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	info, err := genericapiserver.NewRequestInfoResolver(&genericapiserver.Config{LegacyAPIGroupPrefixes: sets.NewString("/api")}).NewRequestInfo(r)
	if err != nil {
		t.Fatal(err)
	}
	r = r.WithContext(request.WithRequestInfo(r.Context(), info))
	answer = httptest.NewRecorder()
	g.before(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { query = r.URL.RawQuery })).ServeHTTP(answer, r)
	return query, answer
}

func TestGuard(t *testing.T) {
	var waited []crdt.Revision
	g := &guard{
		newest:  func() crdt.Revision { return revision(7, 30) },
		catchUp: func(_ context.Context, r crdt.Revision) { waited = append(waited, r) },
	}
	services := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for name, to := range map[string]*apiregistration.ServiceReference{"v1.apps": nil, "v1beta1.metrics.k8s.io": {Name: "metrics"}} {
		if err := services.Add(&apiregistration.APIService{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: apiregistration.APIServiceSpec{Service: to}}); err != nil {
			t.Fatal(err)
		}
	}
	lister := aggregation.NewAPIServiceLister(services)
	g.services.Store(&lister)

	foreign := revision(8, 0)
	for _, c := range []struct {
		method, path, query string
		want                string // what goes on
		waits               bool
	}{
		{"GET", "/api/v1/pods", "watch=true&resourceVersion=%d", "resourceVersion=1&watch=true", false},
		{"GET", "/api/v1/watch/pods", "resourceVersion=%d", "resourceVersion=1", false},
		{"GET", "/api/v1/watch/namespaces/a/pods/b", "resourceVersion=%d", "resourceVersion=1", false},
		{"GET", "/apis/apps/v1/deployments", "watch=1&resourceVersion=%d", "resourceVersion=1&watch=1", false},
		{"GET", "/api/v1/pods", "watch=true&resourceVersion=%d&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "resourceVersionMatch=NotOlderThan&sendInitialEvents=true&watch=true", true},
		{"GET", "/api/v1/pods", "resourceVersion=%d&resourceVersionMatch=NotOlderThan&limit=9", "limit=9", true},
		{"DELETE", "/api/v1/namespaces/a/pods", "resourceVersion=%d&labelSelector=a", "labelSelector=a", true},
		{"GET", "/api/v1/namespaces/a/pods/b", "resourceVersion=%d&pretty=1", "pretty=1", true},
		{"GET", "/apis/apps/v1/namespaces/a/deployments/b/status", "resourceVersion=%d&x=1", "x=1", true},
		{"GET", "/apis/unknown/v1/things", "resourceVersion=%d&x=1", "x=1", true},
		// Not ours to read.
		{"GET", "/api/v1/namespaces/a/pods/b/proxy/c", "resourceVersion=%d", "resourceVersion=%d", false},
		{"GET", "/api/v1/namespaces/a/services/b/proxy", "watch=1&resourceVersion=%d", "watch=1&resourceVersion=%d", false},
		{"GET", "/api/v1/proxy/nodes/a/pods", "watch=1&resourceVersion=%d", "watch=1&resourceVersion=%d", false},
		{"GET", "/api/v1/namespaces/a/pods/b/log", "resourceVersion=%d", "resourceVersion=%d", false},
		{"GET", "/apis/metrics.k8s.io/v1beta1/pods", "watch=1&resourceVersion=%d", "watch=1&resourceVersion=%d", false},
		{"GET", "/openapi/v3", "resourceVersion=%d", "resourceVersion=%d", false},
		{"POST", "/api/v1/namespaces/a/pods", "resourceVersion=%d", "resourceVersion=%d", false},
		{"PUT", "/api/v1/namespaces/a/pods/b", "resourceVersion=%d", "resourceVersion=%d", false},
		{"DELETE", "/api/v1/namespaces/a/pods/b", "resourceVersion=%d", "resourceVersion=%d", false},
	} {
		waited = nil
		query, _ := ask(t, g, c.method, c.path+"?"+fmt.Sprintf(c.query, foreign))
		want := c.want
		if want == c.query {
			want = fmt.Sprintf(want, foreign)
		}
		if query != want {
			t.Errorf("%s %s?%s: %q goes on, want %q", c.method, c.path, c.query, query, want)
		}
		if (len(waited) == 1 && waited[0] == foreign) != c.waits {
			t.Errorf("%s %s?%s: waited for %v", c.method, c.path, c.query, waited)
		}
	}
	// A revision of its own that it lost will not come from anywhere.
	waited = nil
	if query, _ := ask(t, g, "GET", fmt.Sprintf("/api/v1/pods?x=1&resourceVersion=%d", revision(7, 31))); query != "x=1" || len(waited) > 0 {
		t.Errorf("a lost revision: %q goes on, waited for %v", query, waited)
	}
}

func TestGuardAnswersExpired(t *testing.T) {
	g := &guard{newest: func() crdt.Revision { return revision(7, 30) }}
	query, answer := ask(t, g, "GET", fmt.Sprintf("/apis/apps/v1/deployments?resourceVersionMatch=Exact&resourceVersion=%d", revision(8, 0)))
	var status metav1.Status
	if err := json.Unmarshal(answer.Body.Bytes(), &status); err != nil {
		t.Fatal(err)
	}
	if query != "" || answer.Code != http.StatusGone || status.Kind != "Status" || status.Code != http.StatusGone || status.Reason != metav1.StatusReasonExpired {
		t.Errorf("%d %+v", answer.Code, status)
	}
}
