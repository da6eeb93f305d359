package api_test

import (
	"context"
	"strings"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	aggregationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"github.com/mootkube/moot/gossip/store"
)

// checkFollower stops leading and holds the API server to leave alone what the
// leader does for all, to serve kinds of custom resources that the leader has
// brought about, and to take up what was left once it leads.
func checkFollower(t *testing.T, p *plane) {
	t.Helper()
	kinds, err := apiextensionsclient.NewForConfig(p.admin)
	check(t, err)
	definitions := kinds.ApiextensionsV1().CustomResourceDefinitions()
	p.follows.Store(true)

	// What a leader elsewhere has done arrives in the store.
	const from, to = "example.org", "arrived.example.net"
	before := p.claims.Load()
	p.copyStored(t, "/registry/apiextensions.k8s.io/customresourcedefinitions/boats."+from, from, to)
	p.copyStored(t, "/registry/apiregistration.k8s.io/apiservices/v1."+from, from, to)
	awaitBoat(t, p, to)

	// What nobody has done yet waits.
	asked := p.asked.Load()
	_, err = definitions.Create(t.Context(), boatKind("example.net"), metav1.CreateOptions{})
	check(t, err)
	await(t, "controllers to want to write", func(context.Context) bool { return p.asked.Load() > asked+5 })
	kind, err := definitions.Get(t.Context(), "boats.example.net", metav1.GetOptions{})
	check(t, err)
	if len(kind.Status.Conditions) > 0 {
		t.Errorf("conditions by one that does not lead: %+v", kind.Status.Conditions)
	}

	// What arrived in another order is not taken for what is to be deleted.
	services, err := aggregationclient.NewForConfig(p.admin)
	check(t, err)
	p.copyStored(t, "/registry/apiregistration.k8s.io/apiservices/v1."+from, from, "early.example.net")
	asked = p.asked.Load()
	await(t, "APIService to be refused deletion", func(context.Context) bool { return p.asked.Load() > asked+5 })
	_, err = services.ApiregistrationV1().APIServices().Get(t.Context(), "v1.early.example.net", metav1.GetOptions{})
	check(t, err)
	if n := p.claims.Load() - before; n != 0 {
		t.Errorf("%d writes of the leader by one that does not lead", n)
	}

	p.follows.Store(false)
	await(t, "the new leader to establish the kind", func(ctx context.Context) bool {
		kind, err := definitions.Get(ctx, "boats.example.net", metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, c := range kind.Status.Conditions {
			if c.Type == apiextensions.Established {
				return c.Status == apiextensions.ConditionTrue
			}
		}
		return false
	})
	awaitBoat(t, p, "example.net")
}

// copyStored puts a copy of the value at key into the store, with another name
// for what is named in it, as a change of another node arrives.
func (p *plane) copyStored(t *testing.T, key, from, to string) {
	t.Helper()
	value, ok := p.stored(t, key)[key]
	if !ok {
		t.Fatalf("nothing is stored at %s", key)
	}
	_, err := p.db.Txn(t.Context(), store.Txn{Then: []store.Op{{
		Kind: store.OpPut, Key: []byte(strings.Replace(key, from, to, 1)), Value: []byte(strings.ReplaceAll(string(value), from, to)),
	}}})
	check(t, err)
}
