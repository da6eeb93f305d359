package crdt

// Change says what a local write did to the fields of an object. The zero
// Change is a write of the whole value.
type Change struct {
	UID        string // metadata.uid of the new value
	APIVersion string // apiVersion of the new value
	Paths      []byte // encoded set of the paths the write changed, empty for the whole value
}

// Schema knows how the lists and maps of a kind are to be merged. It must be
// safe for concurrent use. Only the writer of a change consults it: what it
// said travels with the change.
type Schema interface {
	// Type returns the root type of objects of apiVersion and kind, nil when
	// it is not known.
	Type(apiVersion, kind string) *Type
}

// DescribeChange compares a value to be written with the record it replaces
// and says which fields it changes. It is meant to run in the writer's
// goroutine: it decodes both values. held is nil, or a delete, when the key
// holds nothing; schema may be nil.
func DescribeChange(held, value []byte, schema Schema) Change {
	uid, apiVersion := identify(value)
	return Change{UID: uid, APIVersion: apiVersion}
}
