package crdt

import (
	"encoding/json"
	"fmt"
	"strings"
)

// customType is a schema in a CustomResourceDefinition, as far as merging goes.
type customType struct {
	Properties map[string]customType `json:"properties"`
	Items      json.RawMessage       `json:"items"`
	Extra      json.RawMessage       `json:"additionalProperties"`
	Required   []string              `json:"required"`
	MinItems   int64                 `json:"minItems"`
	OneOf      []json.RawMessage     `json:"oneOf"`
	ListType   string                `json:"x-kubernetes-list-type"`
	ListKeys   []string              `json:"x-kubernetes-list-map-keys"`
	MapType    string                `json:"x-kubernetes-map-type"`
}

// ReadCRD returns the schema that a stored CustomResourceDefinition object in
// JSON declares, of all its versions.
func ReadCRD(crd []byte) (Schema, error) {
	var object struct {
		Spec struct {
			Group string `json:"group"`
			Names struct {
				Kind string `json:"kind"`
			} `json:"names"`
			Versions []struct {
				Name   string `json:"name"`
				Schema struct {
					Root customType `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(crd, &object); err != nil {
		return nil, fmt.Errorf("read custom resource definition: %w: %w", ErrMalformed, err)
	}
	declared := kinds{}
	for _, v := range object.Spec.Versions {
		t, err := v.Schema.Root.read(0)
		if err != nil {
			return nil, fmt.Errorf("read custom resource definition of %s, version %s: %w", object.Spec.Names.Kind, v.Name, err)
		}
		t.atomic, t.required = false, false
		declared[[2]string{object.Spec.Group + "/" + v.Name, object.Spec.Names.Kind}] = withMetadata(t)
	}
	return declared, nil
}

func readCustomType(b json.RawMessage, depth int) (*Type, error) {
	if len(b) == 0 || b[0] != '{' {
		return nil, nil // absent, or true or false
	}
	var c customType
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return c.read(depth)
}

func (c *customType) read(depth int) (*Type, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: nested too deep", ErrMalformed)
	}
	t := &Type{
		// Alternatives are for one write to choose between; those of all the
		// spec are too much to tie together.
		atomic:   c.MapType == "atomic" || len(c.OneOf) > 0 && depth > 1,
		required: len(c.Required) > 0,
		least:    c.MinItems > 0,
	}
	if len(c.Properties) > 0 {
		t.fields = make(map[string]*Type, len(c.Properties))
	}
	for name, p := range c.Properties {
		f, err := p.read(depth + 1)
		if err != nil {
			return nil, err
		}
		t.fields[name] = f
	}
	elem := c.Extra
	if len(c.Items) > 0 {
		elem = c.Items
	}
	var err error
	if t.elem, err = readCustomType(elem, depth+1); err != nil {
		return nil, err
	}
	switch keys := strings.Join(c.ListKeys, ","); {
	case c.ListType == "set":
		t.form = formSet
	case c.ListType == "map" && len(c.ListKeys) > 0 && strings.Count(keys, ",") == len(c.ListKeys)-1:
		t.form = formKeyed + keys
	}
	return t, nil
}
