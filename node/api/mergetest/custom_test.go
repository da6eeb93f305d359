package mergetest

import (
	"context"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// custom validates objects of a custom kind by its definition.
type custom struct {
	structure *structural.Structural
	schema    validation.SchemaValidator
}

func newCustom(t testing.TB, crd []byte) custom {
	t.Helper()
	obj, err := decode(t, crd)
	if err != nil {
		t.Fatal(err)
	}
	props, err := apiextensions.GetSchemaForVersion(obj.(*apiextensions.CustomResourceDefinition), "v1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := structural.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	v, _, err := validation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	return custom{s, v}
}

// Validate implements creator.
func (c custom) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	content := obj.(*unstructured.Unstructured).UnstructuredContent()
	errs := validation.ValidateCustomResource(nil, content, c.schema)
	return append(errs, listtype.ValidateListSetsAndMaps(nil, c.structure, content)...)
}
