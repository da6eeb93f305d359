package crdt

import "encoding/json"

// identify reads metadata.uid and apiVersion of an object in JSON, both empty
// when value is none.
func identify(value []byte) (uid, apiVersion string) {
	if len(value) == 0 || value[0] != '{' {
		return "", ""
	}
	var object struct {
		APIVersion string `json:"apiVersion"`
		Metadata   struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if json.Unmarshal(value, &object) != nil {
		return "", ""
	}
	return object.Metadata.UID, object.APIVersion
}
