package api

import (
	"context"
	"fmt"
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	storageapi "k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/batch"
	"k8s.io/kubernetes/pkg/apis/core"

	"github.com/mootkube/moot/node/pki"
)

// kept is a storage that keeps the last object.
type kept struct {
	storageapi.Interface
	object runtime.Object
}

func (k *kept) Create(_ context.Context, _ string, obj, _ runtime.Object, _ uint64) error {
	k.object = obj
	return nil
}

// maker is a node of a cluster, as far as UIDs go.
type maker struct {
	cluster, namespace string
	past               map[string]string
	by                 string
	groups             []string
}

const random = types.UID("given by upstream")

func (m maker) create(t *testing.T, resource schema.GroupResource, key string, obj runtime.Object) types.UID {
	t.Helper()
	namespaces := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: types.UID(m.namespace)}}); err != nil {
		t.Fatal(err)
	}
	ids := &identities{
		cluster: m.cluster, namespaces: corelisters.NewNamespaceLister(namespaces),
		past: func(key string) []byte { return []byte(m.past[key]) },
	}
	in := &kept{}
	options := generic.RESTOptions{
		StorageConfig: &storagebackend.ConfigForResource{Config: storagebackend.Config{Prefix: "/registry"}, GroupResource: resource},
		Decorator: func(*storagebackend.ConfigForResource, string, func(runtime.Object) (string, error), func() runtime.Object, func() runtime.Object,
			storageapi.AttrFunc, storageapi.IndexerFuncs, *cache.Indexers) (storageapi.Interface, factory.DestroyFunc, error) {
			return in, nil, nil
		},
	}
	ids.decorate(&options)
	storage, _, err := options.Decorator(options.StorageConfig, "", nil, nil, nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	object, err := meta.Accessor(obj)
	if err != nil {
		t.Fatal(err)
	}
	object.SetUID(random)
	ctx := request.WithUser(t.Context(), &user.DefaultInfo{Name: m.by, Groups: m.groups})
	if err := storage.Create(ctx, key, obj, nil, 0); err != nil {
		t.Fatal(err)
	}
	if in.object != obj {
		t.Error("the object is not passed on")
	}
	return object.GetUID()
}

func TestSharedUIDs(t *testing.T) {
	own := func(kind, uid string) metav1.ObjectMeta {
		yes := true
		return metav1.ObjectMeta{
			Name: "x", Namespace: "a", Annotations: map[string]string{revisionAnnotation: "3"},
			OwnerReferences: []metav1.OwnerReference{{Kind: kind, UID: types.UID(uid), Controller: &yes}},
		}
	}
	self := maker{cluster: "c", namespace: "ns", by: "system:serviceaccount:kube-system:any"}
	server := maker{cluster: "c", namespace: "ns", by: user.APIServerUser}
	leader := maker{cluster: "c", namespace: "ns", by: "moot:leader", groups: []string{pki.GroupLeader}}
	of := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: "a"} }
	for _, c := range []struct {
		by       maker
		resource string
		object   func() runtime.Object
		shared   bool
	}{
		{self, "replicasets.apps", func() runtime.Object { return &apps.ReplicaSet{ObjectMeta: own("Deployment", "d")} }, true},
		{self, "replicasets.apps", func() runtime.Object { return &apps.ReplicaSet{ObjectMeta: own("Rollout", "d")} }, false},
		{self, "replicasets.apps", func() runtime.Object { return &apps.ReplicaSet{ObjectMeta: of("x")} }, false},
		{self, "controllerrevisions.apps", func() runtime.Object { return &apps.ControllerRevision{ObjectMeta: own("DaemonSet", "d")} }, true},
		{self, "jobs.batch", func() runtime.Object { return &batch.Job{ObjectMeta: own("CronJob", "d")} }, true},
		{self, "jobs.batch", func() runtime.Object { return &batch.Job{ObjectMeta: of("x")} }, false},
		{self, "pods", func() runtime.Object { return &core.Pod{ObjectMeta: own("ReplicaSet", "d")} }, false},
		{server, "pods", func() runtime.Object { return &core.Pod{ObjectMeta: of("x")} }, false},
		{self, "serviceaccounts", func() runtime.Object { return &core.ServiceAccount{ObjectMeta: of("default")} }, true},
		{self, "serviceaccounts", func() runtime.Object { return &core.ServiceAccount{ObjectMeta: of("x")} }, false},
		{self, "configmaps", func() runtime.Object { return &core.ConfigMap{ObjectMeta: of("kube-root-ca.crt")} }, true},
		{self, "configmaps", func() runtime.Object { return &core.ConfigMap{ObjectMeta: of("default")} }, false},
		{server, "namespaces", func() runtime.Object { return &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}} }, true},
		{self, "namespaces", func() runtime.Object { return &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x"}} }, false},
		{server, "services", func() runtime.Object { return &core.Service{ObjectMeta: of("kubernetes")} }, true},
		{leader, "endpoints", func() runtime.Object { return &core.Endpoints{ObjectMeta: of("kubernetes")} }, true},
		{self, "endpoints", func() runtime.Object { return &core.Endpoints{ObjectMeta: of("kubernetes")} }, false},
		{maker{namespace: "ns", by: user.APIServerUser}, "services", func() runtime.Object { return &core.Service{ObjectMeta: of("kubernetes")} }, false},
	} {
		resource := schema.ParseGroupResource(c.resource)
		key := "/" + resource.Resource + "/a/x"
		uid := c.by.create(t, resource, key, c.object())
		name := fmt.Sprintf("%s %T by %s", c.resource, c.object(), c.by.by)
		if !c.shared {
			if uid != random {
				t.Errorf("%s: %s", name, uid)
			}
			continue
		}
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(string(uid)) {
			t.Errorf("%s: %q is no UUID of version 8", name, uid)
		}
		if again := c.by.create(t, resource, key, c.object()); again != uid {
			t.Errorf("%s: another node gives %s", name, again)
		}
		if other := c.by.create(t, resource, key+"y", c.object()); other == uid {
			t.Errorf("%s: another name gets the same", name)
		}
		later := c.by
		later.past = map[string]string{"/registry" + key: "one delete"}
		if other := later.create(t, resource, key, c.object()); other == uid {
			t.Errorf("%s: made again, it gets the same", name)
		}
	}
}

func TestSharedUIDsDiffer(t *testing.T) {
	yes := true
	set := func(owner, revision string) runtime.Object {
		return &apps.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
			Name: "x", Namespace: "a", Annotations: map[string]string{revisionAnnotation: revision},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Deployment", UID: types.UID(owner), Controller: &yes}},
		}}
	}
	revisions := func(n int64) runtime.Object {
		return &apps.ControllerRevision{Revision: n, ObjectMeta: metav1.ObjectMeta{
			Name: "x", Namespace: "a", OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", UID: "o", Controller: &yes}},
		}}
	}
	account := func() runtime.Object {
		return &core.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "a"}}
	}
	system := func() runtime.Object { return &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}} }
	m := maker{cluster: "c", namespace: "ns", by: user.APIServerUser}
	other, recreated := m, m
	other.cluster, recreated.namespace = "c2", "ns2"
	sets, history := schema.GroupResource{Group: "apps", Resource: "replicasets"}, schema.GroupResource{Group: "apps", Resource: "controllerrevisions"}
	accounts, namespaces := schema.GroupResource{Resource: "serviceaccounts"}, schema.GroupResource{Resource: "namespaces"}
	seen := map[types.UID]string{}
	for name, uid := range map[string]types.UID{
		"owner d":               m.create(t, sets, "/k", set("d", "1")),
		"owner e":               m.create(t, sets, "/k", set("e", "1")),
		"a later rollout":       m.create(t, sets, "/k", set("d", "2")),
		"revision 1":            m.create(t, history, "/k", revisions(1)),
		"revision 2":            m.create(t, history, "/k", revisions(2)),
		"account":               m.create(t, accounts, "/k", account()),
		"of the next namespace": recreated.create(t, accounts, "/k", account()),
		"kube-system":           m.create(t, namespaces, "/k", system()),
		"of another cluster":    other.create(t, namespaces, "/k", system()),
	} {
		if before := seen[uid]; before != "" {
			t.Errorf("%s and %s have the same UID", name, before)
		}
		seen[uid] = name
	}
}
