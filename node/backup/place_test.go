package backup

import (
	"fmt"
	"strings"
	"testing"
)

func TestPlace(t *testing.T) {
	const deploy = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{%s"name":"web","uid":%q},"spec":{"replicas":%d},"status":{"replicas":%d}}`
	tests := map[string]struct {
		key, came, held string
		want            Verdict
		value           string // "" for none
	}{
		"missing":       {"/registry/x", `{"apiVersion":"v1","metadata":{"uid":"a"}}`, "", Add, `{"apiVersion":"v1","metadata":{"uid":"a"}}`},
		"equal":         {"/registry/x", `{"apiVersion":"v1","metadata":{"uid":"a"}}`, `{"apiVersion":"v1","metadata":{"uid":"a"}}`, Same, ""},
		"no object":     {"/registry/x", "text", "other", Change, "text"},
		"no object now": {"/registry/x", `{"apiVersion":"v1","metadata":{}}`, "other", Change, `{"apiVersion":"v1","metadata":{}}`},
		"only the status differs": {
			"/registry/deployments/d/web", fmt.Sprintf(deploy, "", "a", 3, 3), fmt.Sprintf(deploy, "", "a", 3, 1), Same, "",
		},
		"only the identity differs": {
			"/registry/deployments/d/web", fmt.Sprintf(deploy, `"generation":1,`, "a", 3, 3), fmt.Sprintf(deploy, `"generation":9,`, "b", 3, 1), Same, "",
		},
		"spec differs: identity and status of now, next generation": {
			"/registry/deployments/d/web", fmt.Sprintf(deploy, `"generation":1,`, "a", 3, 3), fmt.Sprintf(deploy, `"generation":9,`, "b", 5, 5),
			Change, fmt.Sprintf(deploy, `"generation":10,`, "b", 3, 5),
		},
		"being deleted now":  {"/registry/deployments/d/web", fmt.Sprintf(deploy, "", "a", 3, 3), fmt.Sprintf(deploy, `"deletionTimestamp":"t",`, "a", 5, 5), Skip, ""},
		"being deleted then": {"/registry/deployments/d/web", fmt.Sprintf(deploy, `"deletionTimestamp":"t",`, "a", 3, 3), "", Skip, ""},
		"long numbers keep their digits": {
			"/registry/x", `{"apiVersion":"v1","metadata":{},"n":12345678901234567890.5}`, `{"apiVersion":"v1","metadata":{},"n":1}`,
			Change, `{"apiVersion":"v1","metadata":{},"n":12345678901234567890.5}`,
		},
		"text keeps its signs": {
			"/registry/x", `{"apiVersion":"v1","data":"<&>","metadata":{}}`, `{"apiVersion":"v1","metadata":{}}`,
			Change, `{"apiVersion":"v1","data":"<&>","metadata":{}}`,
		},

		"owner made anew": {
			"/registry/replicasets/d/web-1", `{"apiVersion":"apps/v1","metadata":{"ownerReferences":[{"uid":"old"}],"uid":"a"},"spec":{"replicas":3}}`,
			`{"apiVersion":"apps/v1","metadata":{"ownerReferences":[{"uid":"new"}],"uid":"b"},"spec":{"replicas":5}}`,
			Change, `{"apiVersion":"apps/v1","metadata":{"ownerReferences":[{"uid":"new"}],"uid":"b"},"spec":{"replicas":3}}`,
		},
		"claim with another volume by now": {
			"/registry/persistentvolumeclaims/d/data", `{"apiVersion":"v1","metadata":{"uid":"a"},"spec":{"volumeName":"pvc-a"}}`,
			`{"apiVersion":"v1","metadata":{"uid":"b"},"spec":{"volumeName":"pvc-b"}}`, Skip, "",
		},
		"claim without a volume by now": {
			"/registry/persistentvolumeclaims/d/data", `{"apiVersion":"v1","metadata":{"uid":"a"},"spec":{"volumeName":"pvc-a"}}`,
			`{"apiVersion":"v1","metadata":{"uid":"b"},"spec":{}}`, Skip, "",
		},
		"claim with its volume": {
			"/registry/persistentvolumeclaims/d/data", `{"apiVersion":"v1","metadata":{"labels":{"a":"b"},"uid":"a"},"spec":{"volumeName":"pvc-a"}}`,
			`{"apiVersion":"v1","metadata":{"uid":"a"},"spec":{"volumeName":"pvc-a"}}`,
			Change, `{"apiVersion":"v1","metadata":{"labels":{"a":"b"},"uid":"a"},"spec":{"volumeName":"pvc-a"}}`,
		},
		"volume with another claim by now": {
			"/registry/persistentvolumes/v", `{"apiVersion":"v1","metadata":{"uid":"v"},"spec":{"claimRef":{"name":"data","uid":"a"}}}`,
			`{"apiVersion":"v1","metadata":{"uid":"v"},"spec":{"claimRef":{"name":"data","uid":"b"}}}`, Skip, "",
		},

		"node":              {"/registry/minions/n1", `{"apiVersion":"v1","metadata":{}}`, "", Skip, ""},
		"token":             {"/moot/tokens/0a", `{}`, "", Skip, ""},
		"attachment":        {"/registry/volumeattachments/a", `{"apiVersion":"v1","metadata":{}}`, "", Skip, ""},
		"API servers":       {"/registry/endpointslices/default/kubernetes", `{"apiVersion":"v1","metadata":{}}`, "", Skip, ""},
		"remade slice":      {"/registry/endpointslices/d/web-1", `{"apiVersion":"v1","metadata":{"labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io"}}}`, "", Skip, ""},
		"user's slice":      {"/registry/endpointslices/d/db", `{"apiVersion":"v1","metadata":{"labels":{"endpointslice.kubernetes.io/managed-by":"me"}}}`, "", Add, `{"apiVersion":"v1","metadata":{"labels":{"endpointslice.kubernetes.io/managed-by":"me"}}}`},
		"remade endpoints":  {"/registry/services/endpoints/d/web", `{"apiVersion":"v1","metadata":{"labels":{"endpoints.kubernetes.io/managed-by":"endpoint-controller"}}}`, "", Skip, ""},
		"user's endpoints":  {"/registry/services/endpoints/d/db", `{"apiVersion":"v1","metadata":{}}`, "", Add, `{"apiVersion":"v1","metadata":{}}`},
		"controlled pod":    {"/registry/pods/d/p", `{"apiVersion":"v1","metadata":{"ownerReferences":[{"kind":"ReplicaSet","controller":true}]}}`, "", Skip, ""},
		"static pod":        {"/registry/pods/d/p", `{"apiVersion":"v1","metadata":{"annotations":{"kubernetes.io/config.mirror":"x"}}}`, "", Skip, ""},
		"finished pod":      {"/registry/pods/d/p", `{"apiVersion":"v1","metadata":{},"status":{"phase":"Succeeded"}}`, "", Skip, ""},
		"pod that is there": {"/registry/pods/d/p", `{"apiVersion":"v1","metadata":{},"spec":{"a":1}}`, `{"apiVersion":"v1","metadata":{}}`, Skip, ""},
		"lost pod": {
			"/registry/pods/d/p", `{"apiVersion":"v1","metadata":{"uid":"old"},"spec":{"nodeName":"n9","a":1},"status":{"phase":"Running","podIP":"10.42.0.9","qosClass":"Burstable"}}`, "",
			Add, `{"apiVersion":"v1","metadata":{"uid":"new"},"spec":{"a":1},"status":{"phase":"Pending","qosClass":"Burstable"}}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var held []byte
			if tt.held != "" {
				held = []byte(tt.held)
			}
			value, verdict := Place(tt.key, []byte(tt.came), held, "new")
			if verdict != tt.want || strings.ReplaceAll(string(value), " ", "") != tt.value {
				t.Errorf("got %d %s\nwant %d %s", verdict, value, tt.want, tt.value)
			}
		})
	}
}

func TestWithOwners(t *testing.T) {
	const object = `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s","ownerReferences":[{"uid":"b"},{"uid":"%s"}],"uid":"x"}}`
	came := fmt.Sprintf(object, "old")
	if got, want := string(WithOwners([]byte(came), map[string]string{"old": "new", "x": "y"})), fmt.Sprintf(object, "new"); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	for _, same := range []string{came, "text", `{"metadata":{"ownerReferences":[1,{"uid":2}]}}`, `{"apiVersion":"v1"}`} {
		if got := string(WithOwners([]byte(same), map[string]string{"other": "new"})); got != same {
			t.Errorf("%s became %s", same, got)
		}
	}
	if got := UID([]byte(came)) + UID([]byte("text")); got != "x" {
		t.Errorf("UID %q", got)
	}
}

func FuzzPlace(f *testing.F) {
	f.Add("/registry/pods/d/p", `{"apiVersion":"v1","metadata":{"ownerReferences":[1]},"spec":[],"status":1}`, `{"apiVersion":"v1"}`)
	f.Fuzz(func(t *testing.T, key, came, held string) {
		value, verdict := Place(key, []byte(came), []byte(held), "new")
		if writes := verdict == Add || verdict == Change; writes != (value != nil) {
			t.Errorf("verdict %d with %q", verdict, value)
		}
	})
}
