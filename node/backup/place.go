package backup

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Verdict is what becomes of one key of a backup.
type Verdict int

// The verdicts of [Place].
const (
	Skip   Verdict = iota // it tells of machines and moments, not of what users want
	Same                  // it is there as it was
	Add                   // it is missing
	Change                // it differs
)

// machineKeys hold what machines say of themselves or the controllers of them.
var machineKeys = []string{
	"/moot/", "/registry/minions/", "/registry/csinodes/", "/registry/volumeattachments/", "/registry/resourceslices/",
	"/registry/services/endpoints/default/kubernetes", "/registry/endpointslices/default/kubernetes",
}

// Place decides what to write for a key of a backup where the store holds held
// now, nil for nothing. An object that is there keeps its identity, its owners
// and its status and gets the rest; one that is missing comes back as it was,
// identity included, since others refer to it by that. A claim or a volume that
// is bound to another by now stays as it is. A pod without a controller comes
// back as a new one with uid, to be scheduled again.
func Place(key string, came, held []byte, uid string) ([]byte, Verdict) {
	if slices.ContainsFunc(machineKeys, func(prefix string) bool { return strings.HasPrefix(key, prefix) }) {
		return nil, Skip
	}
	object, ok := decodeObject(came)
	switch {
	case held != nil && bytes.Equal(came, held):
		return nil, Same
	case !ok && held == nil:
		return came, Add
	case !ok:
		return came, Change
	case object.remade(key) || object.metadata["deletionTimestamp"] != nil:
		return nil, Skip
	case strings.HasPrefix(key, "/registry/pods/"):
		if held != nil || !object.renewPod(uid) {
			return nil, Skip
		}
		return object.encode(), Add
	case held == nil:
		return came, Add
	}
	present, ok := decodeObject(held)
	if !ok {
		return came, Change
	}
	if present.metadata["deletionTimestamp"] != nil || !object.boundAs(present, key) {
		return nil, Skip
	}
	return object.over(present)
}

// UID is the identity of an object, empty when value is none.
func UID(value []byte) string {
	object, _ := decodeObject(value)
	uid, _ := object.metadata["uid"].(string)
	return uid
}

// WithOwners is an object of a backup whose owners have the identities of now,
// by those of then, where they were made anew: with owners that are not there it
// would be deleted as soon as it is back. It is value itself where nothing is to
// be changed.
func WithOwners(value []byte, now map[string]string) []byte {
	if len(now) == 0 {
		return value
	}
	object, _ := decodeObject(value)
	owners, _ := object.metadata["ownerReferences"].([]any)
	changed := false
	for _, owner := range owners {
		fields, _ := owner.(map[string]any)
		uid, _ := fields["uid"].(string)
		if other, ok := now[uid]; ok {
			fields["uid"], changed = other, true
		}
	}
	if !changed {
		return value
	}
	return object.encode()
}

// storedObject is a Kubernetes object as the store has it. Numbers keep their
// text.
type storedObject struct {
	fields   map[string]any
	metadata map[string]any
}

func decodeObject(value []byte) (storedObject, bool) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	decoder.UseNumber()
	var o storedObject
	if decoder.Decode(&o.fields) != nil || o.fields["apiVersion"] == nil {
		return storedObject{}, false
	}
	var ok bool
	o.metadata, ok = o.fields["metadata"].(map[string]any)
	return o, ok
}

func (o storedObject) encode() []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(o.fields) != nil {
		return nil // it came out of JSON
	}
	return bytes.TrimSpace(out.Bytes())
}

// remade reports whether a controller or a kubelet makes the object again.
func (o storedObject) remade(key string) bool {
	labels, _ := o.metadata["labels"].(map[string]any)
	annotations, _ := o.metadata["annotations"].(map[string]any)
	switch {
	case strings.HasPrefix(key, "/registry/pods/"):
		owners, _ := o.metadata["ownerReferences"].([]any)
		return annotations["kubernetes.io/config.mirror"] != nil || slices.ContainsFunc(owners, func(owner any) bool {
			fields, _ := owner.(map[string]any)
			return fields["controller"] == true
		})
	case strings.HasPrefix(key, "/registry/endpointslices/"):
		by, _ := labels["endpointslice.kubernetes.io/managed-by"].(string)
		return strings.HasSuffix(by, ".k8s.io")
	case strings.HasPrefix(key, "/registry/services/endpoints/"):
		return labels["endpoints.kubernetes.io/managed-by"] != nil
	}
	return false
}

// renewPod makes a pod that has not run yet; false when it has come to its end.
func (o storedObject) renewPod(uid string) bool {
	status, _ := o.fields["status"].(map[string]any)
	if phase := status["phase"]; phase == "Succeeded" || phase == "Failed" {
		return false
	}
	renewed := map[string]any{"phase": "Pending"}
	if class, ok := status["qosClass"]; ok {
		renewed["qosClass"] = class
	}
	o.fields["status"], o.metadata["uid"] = renewed, uid
	if spec, ok := o.fields["spec"].(map[string]any); ok {
		delete(spec, "nodeName")
	}
	return true
}

// boundAs reports whether a claim has the volume, or a volume the claim, that it
// has now, and is true for all else. A claim that is led back to a volume of
// before leaves the one it has, which is then deleted with all that is in it.
func (o storedObject) boundAs(present storedObject, key string) bool {
	var field string
	switch {
	case strings.HasPrefix(key, "/registry/persistentvolumeclaims/"):
		field = "volumeName"
	case strings.HasPrefix(key, "/registry/persistentvolumes/"):
		field = "claimRef"
	default:
		return true
	}
	then, _ := o.fields["spec"].(map[string]any)
	now, _ := present.fields["spec"].(map[string]any)
	return reflect.DeepEqual(then[field], now[field])
}

// over puts the object in the place of one that is there. Its owners are those
// of now: one that was made anew has another identity, and what belongs to one
// that is not there is deleted.
func (o storedObject) over(present storedObject) ([]byte, Verdict) {
	for _, name := range []string{"uid", "creationTimestamp", "generation", "ownerReferences"} {
		keep(o.metadata, present.metadata, name)
	}
	keep(o.fields, present.fields, "status")
	managed := o.metadata["managedFields"]
	keep(o.metadata, present.metadata, "managedFields")
	if bytes.Equal(o.encode(), present.encode()) {
		return nil, Same
	}
	o.metadata["managedFields"] = managed
	if managed == nil {
		delete(o.metadata, "managedFields")
	}
	if generation, ok := o.metadata["generation"].(json.Number); ok {
		if n, err := generation.Int64(); err == nil {
			o.metadata["generation"] = n + 1 // its controller is to look at it anew
		}
	}
	return o.encode(), Change
}

func keep(into, from map[string]any, name string) {
	if value, ok := from[name]; ok {
		into[name] = value
	} else {
		delete(into, name)
	}
}
