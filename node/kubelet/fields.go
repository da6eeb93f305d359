package kubelet

import (
	"reflect"
	"strings"
)

// jsonNames lists the names a struct's fields have in JSON, embedded structs
// included.
func jsonNames(v any) []string {
	var names []string
	t := reflect.TypeOf(v)
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case field.Anonymous && name == "":
			names = append(names, jsonNames(reflect.New(field.Type).Elem().Interface())...)
		case name != "" && name != "-":
			names = append(names, name)
		}
	}
	return names
}
