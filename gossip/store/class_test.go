package store

import "testing"

func TestClassOf(t *testing.T) {
	for key, want := range map[string]class{
		"compact_rev_key":                                      localMemory,
		"compact_rev_key2":                                     durable,
		"/registry/health":                                     localMemory,
		"/registry/ranges/serviceips":                          localDurable,
		"/registry/leases/kube-node-lease/n1":                  derived,
		"/registry/leases/kube-node-lease/":                    lock,
		"/registry/leases/kube-system/kube-controller-manager": lock,
		"/registry/leases/x":                                   lock,
		"/registry/leasesx":                                    durable,
		"/registry/events/default/e.1":                         event,
		"/registry/masterleases/10.0.0.1":                      memory,
		"/registry/pods/default/events":                        durable,
		"/registry/apiextensions.k8s.io/events/x":              durable,
		"/other": durable,
	} {
		if got := classOf([]byte(key)); got != want {
			t.Errorf("%s is %s, want %s", key, got.name, want.name)
		}
	}
}

func TestTouchesVolatile(t *testing.T) {
	for _, c := range []struct {
		key, end string
		want     bool
	}{
		{"/registry/pods/", "/registry/pods0", false},
		{"/registry/events/a", "", true},
		{"/registry/pods/a", "", false},
		{"/registry/events/", "/registry/events0", true},
		{"/registry/events/default/", "/registry/events/default0", true},
		{"/registry/", "/registry0", true},
		{"/registry/a", "/registry/events/", false},
		{"/registry/events0", "/registry/health", false},
		{"/registry/events0", "/registry/health\x00", true},
		{"/registry/ranges/", "/registry/ranges0", false},
		{"\x00", "\x00", true},
		{"/registry/masterleases0", "\x00", true}, // compact_rev_key
		{"d", "\x00", false},
	} {
		if got := touchesVolatile([]byte(c.key), []byte(c.end)); got != c.want {
			t.Errorf("[%q, %q): %v, want %v", c.key, c.end, got, c.want)
		}
	}
}
