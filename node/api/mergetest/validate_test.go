package mergetest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	crdinstall "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
)

type creator interface {
	Validate(ctx context.Context, obj runtime.Object) field.ErrorList
}

type updater interface {
	ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList
}

// rules are what the API server asks of objects of a kind, and of their status.
type rules struct {
	object creator
	status updater // nil: the kind has none of its own
}

func kinds(t testing.TB, objects map[string][]byte) map[string]rules {
	t.Helper()
	return map[string]rules{
		"Shop":                      {newCustom(t, objects[shopDefinition]), nil},
		"Pod":                       {pod.Strategy, pod.StatusStrategy},
		"Deployment":                {deployment.Strategy, deployment.StatusStrategy},
		"ReplicaSet":                {replicaset.Strategy, replicaset.StatusStrategy},
		"StatefulSet":               {statefulset.Strategy, statefulset.StatusStrategy},
		"DaemonSet":                 {daemonset.Strategy, daemonset.StatusStrategy},
		"Job":                       {job.Strategy, job.StatusStrategy},
		"CronJob":                   {cronjob.Strategy, cronjob.StatusStrategy},
		"Service":                   {service.Strategy, service.StatusStrategy},
		"ConfigMap":                 {configmap.Strategy, nil},
		"Secret":                    {secret.Strategy, nil},
		"Namespace":                 {namespace.Strategy, namespace.StatusStrategy},
		"Node":                      {node.Strategy, node.StatusStrategy},
		"PersistentVolume":          {persistentvolume.Strategy, persistentvolume.StatusStrategy},
		"PersistentVolumeClaim":     {persistentvolumeclaim.Strategy, persistentvolumeclaim.StatusStrategy},
		"Ingress":                   {ingress.Strategy, ingress.StatusStrategy},
		"NetworkPolicy":             {networkpolicy.Strategy, nil},
		"HorizontalPodAutoscaler":   {horizontalpodautoscaler.Strategy, horizontalpodautoscaler.StatusStrategy},
		"PodDisruptionBudget":       {poddisruptionbudget.Strategy, poddisruptionbudget.StatusStrategy},
		"ServiceAccount":            {serviceaccount.Strategy, nil},
		"ClusterRole":               {clusterrole.Strategy, nil},
		"ClusterRoleBinding":        {clusterrolebinding.Strategy, nil},
		"EndpointSlice":             {endpointslice.Strategy, nil},
		"Lease":                     {lease.Strategy, nil},
		"ResourceQuota":             {resourcequota.Strategy, resourcequota.StatusStrategy},
		"CertificateSigningRequest": {certificates.Strategy, certificates.StatusStrategy},
		"CustomResourceDefinition":  {definitions{}, nil},
	}
}

const shopDefinition = "customresourcedefinition-shops.example.com"

// definitions validates custom resource definitions.
type definitions struct{}

func (definitions) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	return crdvalidation.ValidateCustomResourceDefinition(ctx, obj.(*apiextensions.CustomResourceDefinition))
}

// decode returns a stored object as the API server sees it.
func decode(t testing.TB, value []byte) (runtime.Object, error) {
	t.Helper()
	var of metav1.TypeMeta
	if err := json.Unmarshal(value, &of); err != nil {
		return nil, err
	}
	if !legacyscheme.Scheme.Recognizes(of.GroupVersionKind()) {
		u := &unstructured.Unstructured{}
		return u, u.UnmarshalJSON(value)
	}
	into := schema.GroupVersion{Group: of.GroupVersionKind().Group, Version: runtime.APIVersionInternal}
	internal, err := runtime.Decode(legacyscheme.Codecs.UniversalDecoder(into), value)
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	m, err := meta.Accessor(internal)
	if err != nil {
		return nil, err
	}
	m.SetResourceVersion("1")
	return internal, nil
}

// validate says what the API server would not take of a stored object, were it
// written again as it is.
func validate(t testing.TB, r rules, value []byte) error {
	t.Helper()
	obj, err := decode(t, value)
	if err != nil {
		return err
	}
	if errs := r.object.Validate(t.Context(), obj); len(errs) > 0 {
		return errs.ToAggregate()
	}
	if r.status == nil {
		return nil
	}
	return r.status.ValidateUpdate(t.Context(), obj, obj.DeepCopyObject()).ToAggregate()
}

func TestMain(m *testing.M) {
	crdinstall.Install(legacyscheme.Scheme)
	m.Run()
}

// TestSamplesAreValid is what makes the other tests mean something.
func TestSamplesAreValid(t *testing.T) {
	objects := samples(t)
	rules := kinds(t, objects)
	for name, value := range objects {
		r, ok := rules[kindOf(t, value)]
		if !ok {
			continue
		}
		if err := validate(t, r, value); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
