package join

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestNetworks(t *testing.T) {
	for _, text := range []string{"10.42.0.0/16", "10.42.0.0/16,fd42::/48", "fd42::/48,10.42.0.0/16", "fd42::/48"} {
		n, err := ParseNetworks(text)
		if err != nil || n.String() != text {
			t.Errorf("%q became %q, %v", text, n, err)
		}
		raw, err := json.Marshal(Settings{ClusterCIDR: n})
		if err != nil {
			t.Fatal(err)
		}
		var s Settings
		if err := json.Unmarshal(raw, &s); err != nil || s.ClusterCIDR != n || s.ServiceCIDR.IsValid() {
			t.Errorf("%s came back as %+v, %v", raw, s, err)
		}
	}
	for _, text := range []string{"", "x", "10.42.0.0/16,", "10.42.0.0/16,10.44.0.0/16", "fd42::/48,fd43::/48", "10.42.0.0/16,fd42::/48,fd43::/48"} {
		if n, err := ParseNetworks(text); err == nil {
			t.Errorf("%q became %q", text, n)
		}
	}
	// What members wrote when there was one family only.
	var s Settings
	if err := json.Unmarshal([]byte(`{"clusterCIDR":"10.42.0.0/16","serviceCIDR":"10.43.0.0/16"}`), &s); err != nil {
		t.Fatal(err)
	}
	if s.ClusterCIDR.First != netip.MustParsePrefix("10.42.0.0/16") || s.ClusterCIDR.Second.IsValid() {
		t.Errorf("settings of before: %+v", s)
	}
	both, _ := ParseNetworks("10.42.0.0/16,fd42::/48")
	other, _ := ParseNetworks("10.43.0.0/16,fd42::/112")
	if !both.Overlaps(other) || both.Overlaps(Networks{First: netip.MustParsePrefix("10.43.0.0/16")}) {
		t.Error("overlaps are not seen, or where there are none")
	}
}
