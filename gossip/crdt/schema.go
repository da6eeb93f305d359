package crdt

import (
	"strings"
	"sync"
)

// Type says how the values at one place of an object are merged. A nil Type is
// one of which nothing is known: objects merge member by member, lists as one
// value.
//
// Types are immutable and may refer to themselves.
type Type struct {
	atomic   bool             // one value, whatever it holds
	required bool             // an object that is not legal with a part of its members
	least    bool             // a list that is not legal when it is empty
	form     string           // of a list: how its items are told apart; empty for a list that is one value
	fields   map[string]*Type // of members by name
	elem     *Type            // of other members, and of items
}

func (t *Type) field(name string) *Type {
	if t == nil {
		return nil
	}
	if f, ok := t.fields[name]; ok {
		return f
	}
	return t.elem
}

func (t *Type) item() *Type {
	if t == nil {
		return nil
	}
	return t.elem
}

// formOf returns the form of a value of type t, empty when it merges as one
// value.
func (t *Type) formOf(n *node) string {
	switch {
	case n.kind == scalar || t != nil && t.atomic:
		return ""
	case n.kind == object:
		return formFields
	case t == nil:
		return ""
	}
	return t.form
}

// Schemas is a Schema made of others: the first that knows a kind says.
type Schemas []Schema

// Type implements [Schema].
func (s Schemas) Type(apiVersion, kind string) *Type {
	for _, one := range s {
		if t := one.Type(apiVersion, kind); t != nil {
			return t
		}
	}
	return nil
}

// rootOf returns the type of an object, with metadata as all objects have it.
func rootOf(schema Schema, apiVersion, kind string) *Type {
	if schema != nil {
		if t := schema.Type(apiVersion, kind); t != nil {
			return t
		}
	}
	return unknownKind()
}

// unknownKind is the type of objects of which only the metadata is known.
var unknownKind = sync.OnceValue(func() *Type {
	return &Type{fields: map[string]*Type{"metadata": objectMeta()}}
})

// objectMeta is the type of metadata.
var objectMeta = sync.OnceValue(func() *Type {
	one := &Type{atomic: true}
	return &Type{fields: map[string]*Type{
		"finalizers":      {form: formSet, elem: one},
		"ownerReferences": {form: formKeyed + "uid", elem: one},
		"managedFields":   {form: formUnordered + strings.Join(managerKeys, ","), elem: &Type{}},
	}}
})

// managerKeys tell the entries of managedFields apart.
var managerKeys = []string{"manager", "operation", "subresource", "apiVersion"}
