package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

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

	"github.com/mootkube/moot/node/pki"
)

// revisionAnnotation counts the rollouts of a Deployment. A ReplicaSet has it
// from its first moment on.
const revisionAnnotation = "deployment.kubernetes.io/revision"

// identities gives objects that several nodes may make at the same time, each
// without knowing of the others, the same UID on all of them, so that they are
// one object when the nodes meet: what a controller makes by a name that
// follows from the owner, and what API servers and leaders make by themselves.
//
// Such a UID is a hash of who makes the object (an owner's UID, or the
// cluster), the object's key, the maker's count of what it makes under that
// name, and what this node remembers of objects that had the key before. The
// last two are the incarnation: an object that is deleted and made again is
// another. Memory of a key fades some time after a delete that all nodes know
// of. By then an owner's count is another, or the name is never used again: it
// has a time in it, or its object is made again at once.
//
// Pods are never among them: one UID on two kubelets would be two containers'
// lives under one name.
type identities struct {
	cluster    string
	past       func(key string) []byte
	namespaces corelisters.NamespaceLister
}

// decorate puts the identities under the registry of a resource.
func (n *identities) decorate(options *generic.RESTOptions) {
	resource := options.StorageConfig.GroupResource
	if !mayShareUID(resource) {
		return
	}
	inner := options.Decorator
	options.Decorator = func(
		config *storagebackend.ConfigForResource, prefix string, keyFunc func(runtime.Object) (string, error),
		newFunc, newListFunc func() runtime.Object, attributes storageapi.AttrFunc,
		triggers storageapi.IndexerFuncs, indexers *cache.Indexers,
	) (storageapi.Interface, factory.DestroyFunc, error) {
		made, destroy, err := inner(config, prefix, keyFunc, newFunc, newListFunc, attributes, triggers, indexers)
		if err != nil {
			return made, destroy, err
		}
		return &identified{Interface: made, identities: n, resource: resource, prefix: config.Prefix}, destroy, nil
	}
}

// mayShareUID reports whether objects of a resource may be made with a shared
// UID at all.
func mayShareUID(resource schema.GroupResource) bool {
	switch resource.Resource {
	case "pods", "events", "leases":
		return false
	}
	return true
}

// identified is the storage of one resource.
type identified struct {
	storageapi.Interface
	identities *identities
	resource   schema.GroupResource
	prefix     string // of the key in the store
}

// Create gives obj its shared UID if it has one.
func (s *identified) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	if object, err := meta.Accessor(obj); err == nil {
		if maker := s.identities.maker(ctx, s.resource, obj, object); maker != "" {
			object.SetUID(s.identities.uid(maker, s.prefix+key))
		}
	}
	return s.Interface.Create(ctx, key, obj, out, ttl)
}

// maker says on whose behalf obj is made, with the count that the maker keeps
// of what it makes under one name, or "" if nobody else makes the same.
func (n *identities) maker(ctx context.Context, resource schema.GroupResource, obj runtime.Object, object metav1.Object) string {
	owner := metav1.GetControllerOf(object)
	switch {
	case owner != nil && resource == schema.GroupResource{Group: "apps", Resource: "replicasets"}:
		if revision := object.GetAnnotations()[revisionAnnotation]; owner.Kind == "Deployment" && revision != "" {
			return "owner " + string(owner.UID) + " " + revision
		}
	case owner != nil && resource == schema.GroupResource{Group: "apps", Resource: "controllerrevisions"}:
		if revision, ok := obj.(*apps.ControllerRevision); ok {
			return fmt.Sprintf("owner %s %d", owner.UID, revision.Revision)
		}
	case owner != nil && resource == schema.GroupResource{Group: "batch", Resource: "jobs"}:
		if owner.Kind == "CronJob" { // the name has the time in it
			return "owner " + string(owner.UID)
		}
	case inEveryNamespace(resource, object.GetName()):
		if namespace, err := n.namespaces.Get(object.GetNamespace()); err == nil {
			return "namespace " + string(namespace.UID)
		}
	case n.cluster != "" && forAll(ctx):
		return "cluster " + n.cluster
	}
	return ""
}

// inEveryNamespace reports whether the controllers make an object of this name
// in every namespace.
func inEveryNamespace(resource schema.GroupResource, name string) bool {
	return resource == schema.GroupResource{Resource: "serviceaccounts"} && name == "default" ||
		resource == schema.GroupResource{Resource: "configmaps"} && name == "kube-root-ca.crt"
}

// forAll reports whether an API server makes the object by itself, or a leader:
// every other API server makes the same, and every other leader in a cut.
func forAll(ctx context.Context) bool {
	who, ok := request.UserFrom(ctx)
	return ok && (who.GetName() == user.APIServerUser || slices.Contains(who.GetGroups(), pki.GroupLeader))
}

func (n *identities) uid(maker, key string) types.UID {
	hash := sha256.New()
	var past []byte
	if n.past != nil {
		past = n.past(key)
	}
	for _, part := range [][]byte{[]byte(maker), []byte(key), past} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		hash.Write(length[:])
		hash.Write(part)
	}
	id := hash.Sum(nil)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8 of RFC 9562: of one's own making
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]))
}
