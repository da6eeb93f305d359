package net

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPartOf(t *testing.T) {
	for _, c := range []struct {
		cluster string
		n       int
		want    string
	}{
		{"10.42.0.0/16", 0, "10.42.0.0/24"},
		{"10.42.0.0/16", 255, "10.42.255.0/24"},
		{"10.0.0.0/8", 258, "10.1.2.0/24"},
		{"172.16.128.0/17", 130, "172.17.2.0/24"}, // carries; such a number is not asked for
		{"10.42.3.0/24", 0, "10.42.3.0/24"},
		{"fd42::/48", 0, "fd42::/64"},
		{"fd42::/48", 65535, "fd42:0:0:ffff::/64"},
		{"fd42:0:0:ff00::/56", 255, "fd42:0:0:ffff::/64"},
	} {
		if got := partOf(cidr(c.cluster), c.n); got != cidr(c.want) {
			t.Errorf("part %d of %s is %s, want %s", c.n, c.cluster, got, c.want)
		}
	}
	for cluster, want := range map[string]int{"10.42.0.0/16": 256, "10.42.0.0/22": 4, "fd42::/48": 65536, "fd00::/8": 65536, "fd42::/64": 1} {
		if got := parts(cidr(cluster)); got != want {
			t.Errorf("%s has %d parts, want %d", cluster, got, want)
		}
	}
}

func TestClaim(t *testing.T) {
	v4, v6 := cidr("10.42.0.0/22"), cidr("fd42::/48")
	for name, c := range map[string]struct {
		number int
		own    []string
		others []peer // age 5 is older than self's 3
		want   []string
		full   int
	}{
		"by number":               {number: 3, want: []string{"10.42.2.0/24", "fd42:0:0:2::/64"}},
		"number too large":        {number: 6, want: []string{"10.42.1.0/24", "fd42:0:0:5::/64"}},
		"no number":               {number: 0, want: []string{"10.42.0.0/24", "fd42::/64"}},
		"taken":                   {number: 3, others: []peer{testPeer("a", 5, "", "10.42.2.0/24"), testPeer("b", 1, "", "10.42.3.0/24")}, want: []string{"10.42.0.0/24", "fd42:0:0:2::/64"}},
		"kept":                    {number: 3, own: []string{"10.42.1.0/24", "fd42:0:0:9::/64"}, want: []string{"10.42.1.0/24", "fd42:0:0:9::/64"}},
		"kept against the young":  {number: 3, own: []string{"10.42.1.0/24", "fd42:0:0:9::/64"}, others: []peer{testPeer("b", 1, "", "10.42.1.0/24")}, want: []string{"10.42.1.0/24", "fd42:0:0:9::/64"}},
		"given up to the older":   {number: 2, own: []string{"10.42.1.0/24", "fd42:0:0:1::/64"}, others: []peer{testPeer("a", 5, "", "10.42.1.0/24")}, want: []string{"10.42.2.0/24", "fd42:0:0:1::/64"}},
		"part of an older's":      {number: 2, own: []string{"10.42.1.0/24", "fd42:0:0:1::/64"}, others: []peer{testPeer("a", 5, "", "10.42.0.0/23")}, want: []string{"10.42.2.0/24", "fd42:0:0:1::/64"}},
		"all taken":               {number: 2, others: []peer{testPeer("a", 5, "", "10.42.0.0/22")}, want: []string{"fd42:0:0:1::/64"}, full: 1},
		"second family came anew": {number: 2, own: []string{"10.42.3.0/24"}, want: []string{"10.42.3.0/24", "fd42:0:0:1::/64"}},
	} {
		peers := append([]peer{testPeer("self", 3, "", c.own...)}, c.others...)
		for range 5 {
			rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
			want, full := claim("self", c.number, []netip.Prefix{v4, v6}, peers)
			if !slices.Equal(text(want), c.want) || len(full) != c.full {
				t.Fatalf("%s: claims %v, full %v, want %v", name, want, full, c.want)
			}
		}
	}
}

// TestClaimsSettle lets nodes join on two sides of a cut, each side seeing only
// its own, and then meet: they end with one network each, and only those who had
// the same as an older one have changed.
func TestClaimsSettle(t *testing.T) {
	cluster := []netip.Prefix{cidr("10.42.0.0/21")} // eight parts
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		number := map[string]int{}
		var sides [2][]peer
		settle := func(nodes []peer) {
			for round := 0; ; round++ {
				changed := false
				for _, i := range r.Perm(len(nodes)) {
					want, full := claim(nodes[i].name, number[nodes[i].name], cluster, nodes)
					if len(full) > 0 {
						t.Fatalf("seed %d: no part left for %s", seed, nodes[i].name)
					}
					if !slices.Equal(want, nodes[i].podCIDRs) {
						nodes[i].podCIDRs, changed = want, true
					}
				}
				if !changed {
					return
				}
				if round > 8 {
					t.Fatalf("seed %d: no end: %v", seed, nodes)
				}
			}
		}
		for i := range 8 {
			name := fmt.Sprintf("n%d", i)
			number[name] = 1 + r.IntN(65535)
			side := &sides[i%2]
			*side = append(*side, testPeer(name, 100-i, ""))
			settle(*side)
		}
		all := slices.Concat(sides[0], sides[1])
		before := map[string]netip.Prefix{}
		for _, p := range all {
			before[p.name] = p.podCIDRs[0]
		}
		settle(all)
		owner := map[netip.Prefix]string{}
		for _, p := range all {
			if other, taken := owner[p.podCIDRs[0]]; taken {
				t.Fatalf("seed %d: %s and %s have %s", seed, p.name, other, p.podCIDRs[0])
			}
			owner[p.podCIDRs[0]] = p.name
		}
		for _, p := range byAge(all) {
			first := true // nobody older had it
			for _, o := range byAge(all) {
				if o.name == p.name {
					break
				}
				first = first && before[o.name] != before[p.name]
			}
			if first != (p.podCIDRs[0] == before[p.name]) {
				t.Fatalf("seed %d: %s had %s, the first of its side: %v, and has %s", seed, p.name, before[p.name], first, p.podCIDRs[0])
			}
		}
	}
}

func TestStraysOf(t *testing.T) {
	yes := true
	pod := func(name, ip string, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, OwnerReferences: []metav1.OwnerReference{{Controller: &yes}}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}},
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	pods := []corev1.Pod{
		pod("b", "10.42.1.3", nil),
		pod("a", "10.42.1.4", nil),
		pod("new", "10.42.2.3", nil),
		pod("host", "10.0.0.1", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("elsewhere", "192.0.2.1", nil),
		pod("bare", "10.42.1.5", func(p *corev1.Pod) { p.OwnerReferences = nil }),
		pod("mirror", "10.42.1.6", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }),
		pod("done", "10.42.1.7", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("z", "10.42.1.8", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }),
	}
	var got []string
	for _, p := range straysOf(pods, []netip.Prefix{cidr("10.42.2.0/24")}, []netip.Prefix{cidr("10.42.0.0/16")}) {
		got = append(got, p.Name)
	}
	if want := []string{"z", "a", "b"}; !slices.Equal(got, want) {
		t.Fatalf("strays %v, want %v", got, want)
	}
}
