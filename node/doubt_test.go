package node

import (
	"net/netip"
	"testing"

	"github.com/mootkube/moot/node/net/proxy"
)

func TestDoubtOf(t *testing.T) {
	networks := map[string][]netip.Prefix{}
	for name, texts := range map[string][]string{
		"n1": {"192.0.2.1/32", "10.42.1.0/24", "fd00:1::/64"},
		"n2": {"192.0.2.2/32", "10.42.2.0/24"},
		"n3": {"192.0.2.3/32", "10.42.3.0/24"},
	} {
		for _, text := range texts {
			networks[name] = append(networks[name], netip.MustParsePrefix(text))
		}
	}
	members := map[string]proxy.Doubt{"n1": proxy.Suspect, "n3": proxy.Dead, "n4": proxy.Dead}
	for text, want := range map[string]proxy.Doubt{
		"10.42.1.7":  proxy.Suspect,
		"fd00:1::7":  proxy.Suspect,
		"192.0.2.1":  proxy.Suspect,
		"10.42.2.7":  0,
		"192.0.2.2":  0,
		"10.42.3.7":  proxy.Dead,
		"192.0.2.3":  proxy.Dead,
		"192.0.2.30": 0,
		"10.43.0.10": 0,
	} {
		if got := doubtOf(netip.MustParseAddr(text), members, networks); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	if got := doubtOf(netip.MustParseAddr("10.42.3.7"), members, nil); got != 0 {
		t.Errorf("before networks are known: %d", got)
	}
}
