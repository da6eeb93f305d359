package crdt

import "testing"

func TestObserved(t *testing.T) {
	const slice, pods, none = "/registry/endpointslices/d/web-x", `[{"addresses":["10.1.1.1"],"targetRef":{"kind":"Pod"}}]`, `[{"addresses":["192.0.2.1"]}]`
	for _, c := range []struct {
		key, path, lost, kept string
		want                  bool
	}{
		{"/registry/x", ".status", "{}", "", true},
		{"/registry/x", ".status.ready", "1", "2", true},
		{"/registry/x", `.status["a"]`, "1", "2", true},
		{"/registry/x", ".statusPage", "1", "2", false},
		{"/registry/x", ".spec.status", "1", "2", false},
		{"/registry/x", "", `{"status":{}}`, "{}", false},
		{slice, ".endpoints", pods, none, true},
		{slice, ".endpoints", none, pods, true},
		{slice, ".endpoints", none, none, false},
		{slice, "", pods, pods, false},
		{slice, `.metadata.annotations["endpoints.kubernetes.io/last-change-trigger-time"]`, "", `"now"`, true},
		{"/registry/services/endpoints/d/web", ".subsets", pods, none, true},
		{"/registry/services/specs/d/web", ".spec", pods, none, false},
	} {
		conflict := Conflict{Key: c.key, Path: c.path, Lost: []byte(c.lost), Kept: []byte(c.kept)}
		if got := conflict.Observed(); got != c.want {
			t.Errorf("%s%s: %t, want %t", c.key, c.path, got, c.want)
		}
	}
}
