package crdt

import (
	"maps"
	"strconv"
	"strings"
)

//go:generate go run gen_builtin.go

// kinds is a schema by apiVersion and kind.
type kinds map[[2]string]*Type

// Builtin returns the schema of the kinds that Kubernetes itself brings.
func Builtin() Schema {
	lines := strings.Split(builtinTypes, "\n")
	types := make([]*Type, len(lines)+1)
	for i := range lines {
		types[i+1] = &Type{}
	}
	for i, line := range lines {
		types[i+1].read(line, types)
	}
	all := kinds{}
	for line := range strings.SplitSeq(builtinKinds, "\n") {
		f := strings.Fields(line)
		all[[2]string{f[0], f[1]}] = withMetadata(types[number(f[2])])
	}
	return all
}

// withMetadata returns the type of a kind, metadata being as all have it.
func withMetadata(t *Type) *Type {
	root := Type{}
	if t != nil {
		root = *t
	}
	root.fields = maps.Clone(root.fields)
	if root.fields == nil {
		root.fields = map[string]*Type{}
	}
	root.fields["metadata"] = objectMeta()
	return &root
}

// read sets t to what a line of the table says.
func (t *Type) read(line string, types []*Type) {
	words := strings.Fields(line)
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, ref, isField := strings.Cut(w, "=")
		switch {
		case isField:
			if t.fields == nil {
				t.fields = map[string]*Type{}
			}
			t.fields[name] = types[number(ref)]
		case w == "a":
			t.atomic = true
		case w == "r":
			t.required = true
		default:
			if w != "-" {
				t.form = w
			}
			i++
			t.elem = types[number(words[i])]
		}
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic("crdt: the table of built-in kinds is damaged: " + err.Error())
	}
	return n
}

// Type implements [Schema].
func (k kinds) Type(apiVersion, kind string) *Type { return k[[2]string{apiVersion, kind}] }
