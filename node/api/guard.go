package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver"
	aggregation "k8s.io/kube-aggregator/pkg/client/listers/apiregistration/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/mootkube/moot/gossip/crdt"
)

// catchUpWithin bounds how long a request that wants a state not older than
// one of another node waits for this node to have it. Upstream waits as long
// for a state that is to come.
const catchUpWithin = 3 * time.Second

// guard stands before all resources and keeps resource versions of other nodes
// from being taken for places in this node's history, where they would name
// the wrong state or one that never comes. Requests for such a place are
// answered as requests for one that has expired are, which every client knows
// how to go on from.
//
// It stands behind authentication and authorisation, so that it tells nothing
// to those who may not ask. Resource versions in bodies need no guard: they are
// compared with the object's own, which differs.
type guard struct {
	newest  func() crdt.Revision
	catchUp func(context.Context, crdt.Revision)
	// services tells which groups other servers answer for; it comes last.
	services atomic.Pointer[aggregation.APIServiceLister]
}

// install puts the guard in front of head, the head of the chain of servers.
func (g *guard) install(head *genericapiserver.Config) {
	around := head.BuildHandlerChainFunc
	head.BuildHandlerChainFunc = func(resources http.Handler, c *genericapiserver.Config) http.Handler {
		return around(g.before(resources), c)
	}
}

func (g *guard) learnServices(server *aggregator.APIAggregator) {
	lister := server.APIRegistrationInformers.Apiregistration().V1().APIServices().Lister()
	g.services.Store(&lister)
}

func (g *guard) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		if r.URL.RawQuery == "" || !ok || !namesPlaces(info) || g.elsewhere(info) {
			next.ServeHTTP(w, r)
			return
		}
		query := r.URL.Query()
		found := findPlace(info.Verb, query, g.newest())
		switch found.ruling {
		case expiredList, expiredToken:
			gv := schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
			responsewriters.ErrorNegotiated(found.expired(), legacyscheme.Codecs, gv, w, r)
			return
		case expiredWatch:
			// A watch ends with an event in whatever form its client asked
			// for. Some of upstream's clients try for ever when it is not an
			// event; the API server writes the right one.
			query.Set("resourceVersion", ancient)
			r = withQuery(r, query)
		case servedFresh:
			g.wait(r.Context(), found.revision)
			query.Del("resourceVersion")
			if info.Verb != "watch" { // where it asks for the initial events
				query.Del("resourceVersionMatch")
			}
			r = withQuery(r, query)
		case served:
		}
		next.ServeHTTP(w, r)
	})
}

// wait gives this node time to receive what the other node had, lest its
// client see the past. Behind a cut it is not going to come.
func (g *guard) wait(ctx context.Context, to crdt.Revision) {
	if g.catchUp == nil || to.Node() == g.newest().Node() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	g.catchUp(ctx, to)
}

// namesPlaces reports whether the API takes resource versions in the query of
// such a request. What goes on to pods, nodes and services is not ours to read.
func namesPlaces(info *request.RequestInfo) bool {
	if !info.IsResourceRequest {
		return false
	}
	switch info.Verb {
	case "list", "watch", "deletecollection":
		return true
	case "get":
		switch info.Subresource {
		case "proxy", "log", "exec", "attach", "portforward":
			return false
		}
		return true
	}
	return false
}

// elsewhere reports whether another server answers for the request's group.
func (g *guard) elsewhere(info *request.RequestInfo) bool {
	services := g.services.Load()
	if services == nil || info.APIGroup == "" {
		return false
	}
	service, err := (*services).Get(info.APIVersion + "." + info.APIGroup)
	return err == nil && service.Spec.Service != nil
}

func (p place) expired() error {
	at := fmt.Sprintf("the resource version %d is not of this node's history but of node %d's", p.revision, p.revision.Node())
	if p.ruling == expiredList {
		return apierrors.NewResourceExpired(at + ": list without it")
	}
	err := apierrors.NewResourceExpired(at + ": list again without the continue token, or go on with the one in this " +
		"answer, which leaves out and repeats what has changed between the two nodes' states")
	err.ErrStatus.Continue = p.token
	return err
}

// withQuery is r as if it had been sent with another query.
func withQuery(r *http.Request, query url.Values) *http.Request {
	changed, address := *r, *r.URL
	address.RawQuery = query.Encode()
	changed.URL = &address
	return &changed
}
