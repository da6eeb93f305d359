package api

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apiextensionsserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// storageOptions gives a server of the chain the settings of each resource's storage,
// changed by each of its functions in turn.
type storageOptions struct {
	generic.RESTOptionsGetter
	changes []func(*generic.RESTOptions)
}

// GetRESTOptions is upstream's, changed.
func (s storageOptions) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := s.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err != nil {
		return options, err
	}
	for _, change := range s.changes {
		change(&options)
	}
	return options, nil
}

// changeStorage changes what the servers of config store and how. Custom
// resources are stored as upstream does.
func changeStorage(config *app.Config, n *identities) {
	change := func(server *genericapiserver.Config, changes ...func(*generic.RESTOptions)) {
		server.RESTOptionsGetter = storageOptions{server.RESTOptionsGetter, changes}
	}
	change(config.KubeAPIs.ControlPlane.Generic, n.decorate)
	change(&config.ApiExtensions.GenericConfig.Config, storeKindsAsV1)
	change(&config.Aggregator.GenericConfig.Config, n.decorate)
}

// storeKindsAsV1 stores CustomResourceDefinitions in their present version and
// not, as upstream still does, in one that is no longer served: what is stored
// is read by others than the API server, who look for schemas in it.
func storeKindsAsV1(options *generic.RESTOptions) {
	v1, v1beta1 := apiextensionsv1.SchemeGroupVersion, apiextensionsv1beta1.SchemeGroupVersion
	options.StorageConfig.Codec = apiextensionsserver.Codecs.LegacyCodec(v1, v1beta1)
	options.StorageConfig.EncodeVersioner = runtime.NewMultiGroupVersioner(v1, schema.GroupKind{Group: v1.Group})
}
