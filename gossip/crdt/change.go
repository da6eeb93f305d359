package crdt

// Change says what a local write did to an object. The zero Change stands for a
// write of the whole value of which nothing is known yet.
type Change struct {
	UID        string // metadata.uid of the new value
	APIVersion string // apiVersion of the new value
	Generation int64  // metadata.generation of the new value
	Step       int64  // by how much the generation is above the old value's
	Paths      []byte // encoded set of the places the write changed, empty for the whole value
}

func (ch *Change) isZero() bool {
	return ch.UID == "" && ch.APIVersion == "" && ch.Generation == 0 && ch.Step == 0 && len(ch.Paths) == 0
}

// Schema knows how the lists and maps of a kind are to be merged. It must be
// safe for concurrent use. Only the writer of a change consults it: what it
// said travels with the change.
type Schema interface {
	// Type returns the root type of objects of apiVersion and kind, nil when
	// it is not known.
	Type(apiVersion, kind string) *Type
}

// DescribeChange compares a value to be written with the one it replaces and
// says what it changes. It is meant to run in the writer's goroutine: it
// decodes both values. held is empty when the key holds nothing; schema may be
// nil.
//
// The change holds for exactly this held value. When another one is there at
// the commit, describe the change again.
func DescribeChange(held, value []byte, schema Schema) Change {
	now := parseObject(value)
	if now == nil {
		return Change{}
	}
	ch := Change{
		UID:        now.at("metadata", "uid").text(),
		APIVersion: now.get("apiVersion").text(),
		Generation: now.at("metadata", "generation").integer(),
	}
	if len(ch.UID) > maxNameBytes || len(ch.APIVersion) > maxNameBytes {
		return Change{} // no object of Kubernetes' has such
	}
	ch.Step = ch.Generation
	old := parseObject(held)
	if old == nil || old.at("metadata", "uid").text() != ch.UID {
		return ch
	}
	ch.Step -= old.at("metadata", "generation").integer()
	kind := now.get("kind").text()
	if old.get("apiVersion").text() != ch.APIVersion || old.get("kind").text() != kind {
		return ch
	}
	t := rootOf(schema, ch.APIVersion, kind)
	if t.atomic || !orderly(old) || !orderly(now) {
		return ch
	}
	p := diffObjects(old, now, t)
	if p == nil {
		p = &paths{}
	}
	p.forget("metadata", "generation")
	tie(p, old, now, ch.APIVersion, kind)
	ch.Paths = p.encode()
	return ch
}

// forget takes a member out of the set.
func (p *paths) forget(parent, name string) {
	i, ok := findKid(p.kids, parent)
	if !ok {
		return
	}
	at := p.kids[i].at
	if j, ok := findKid(at.kids, name); ok {
		at.kids = append(at.kids[:j], at.kids[j+1:]...)
		p.prune()
	}
}
