package node

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestWithPodCIDRs(t *testing.T) {
	const stored = `{"kind":"Node","apiVersion":"v1","metadata":{"name":"n1","generation":12345678901234567},"spec":{"podCIDR":"10.42.1.0/24","podCIDRs":["10.42.1.0/24"],"later":{"x":1}},"status":{"y":[1,2]}}`
	got, err := withPodCIDRs([]byte(stored), []string{"10.42.1.0/24"}, []string{"10.42.7.0/24", "fd42:0:0:7::/64"})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"v1","kind":"Node","metadata":{"generation":12345678901234567,"name":"n1"},"spec":{"later":{"x":1},"podCIDR":"10.42.7.0/24","podCIDRs":["10.42.7.0/24","fd42:0:0:7::/64"]},"status":{"y":[1,2]}}` + "\n"
	if string(got) != want {
		t.Errorf("Node became\n%s want\n%s", got, want)
	}
	if _, err := withPodCIDRs([]byte(stored), []string{"10.42.2.0/24"}, []string{"10.42.7.0/24"}); !errors.Is(err, errPodCIDRsMoved) {
		t.Errorf("error %v for a Node that has others", err)
	}
	if _, err := withPodCIDRs([]byte("k8s\x00"), nil, []string{"10.42.7.0/24"}); err == nil {
		t.Error("bytes that are no JSON were edited")
	}
	if _, err := withPodCIDRs([]byte(`{"spec":{}}`), []string{"10.42.7.0/24"}, []string{"10.42.8.0/24"}); err == nil {
		t.Error("a Node without networks was changed")
	}
	if !json.Valid(got) {
		t.Error("not JSON")
	}
}
