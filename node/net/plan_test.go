package net

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr   { return netip.MustParseAddr(s) }

func testPeer(name string, age int, ip string, cidrs ...string) peer {
	p := peer{name: name, born: time.Unix(1000-int64(age), 0)}
	if ip != "" {
		p.addrs = []netip.Addr{addr(ip)}
	}
	for _, c := range cidrs {
		p.podCIDRs = append(p.podCIDRs, cidr(c))
	}
	return p
}

// direct is a terrain where all nodes share a link.
func direct(self string) terrain {
	return terrain{self: self, mode: ModeAuto, ways: func(netip.Addr) way { return wayDirect }}
}

func TestNetworksOf(t *testing.T) {
	peers := []peer{
		testPeer("young", 1, "10.0.0.3", "10.42.1.0/24"), // clashes with the older n2
		testPeer("n1", 5, "fd00::1", "10.42.0.0/24", "fd42::/64"),
		testPeer("n2", 4, "", "10.42.1.0/24"), // no address yet
	}
	for mode, want := range map[Mode]map[string][]netip.Prefix{
		ModeAuto: {
			"n1":    {cidr("fd00::1/128"), cidr("10.42.0.0/24"), cidr("fd42::/64")},
			"n2":    {cidr("10.42.1.0/24")},
			"young": {cidr("10.0.0.3/32")},
		},
		ModeNone: {"n1": {cidr("fd00::1/128")}, "young": {cidr("10.0.0.3/32")}},
	} {
		if got := networksOf(peers, mode); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", mode, got, want)
		}
	}
}

func TestPlanRoutes(t *testing.T) {
	peers := []peer{
		testPeer("n1", 5, "10.0.0.1", "10.42.0.0/24"),
		testPeer("n2", 4, "10.0.0.2", "10.42.1.0/24"),
		testPeer("n3", 3, "", "10.42.2.0/24"),           // no address yet
		testPeer("n4", 2, "10.0.0.4"),                   // no network yet
		testPeer("n5", 1, "10.0.0.5", "10.42.1.0/24"),   // clashes with the older n2
		testPeer("n6", 1, "10.0.0.6", "10.42.0.128/25"), // clashes with n1
		testPeer("n7", 1, "fd00::7", "10.42.7.0/24"),    // wrong family
	}
	want := map[netip.Prefix]hop{cidr("10.42.1.0/24"): {via: addr("10.0.0.2")}}
	for range 20 {
		rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
		plan := direct("n1").plan(peers)
		if !maps.Equal(plan.routes, want) {
			t.Fatalf("routes %v, want %v", plan.routes, want)
		}
		if len(plan.own) != 1 || plan.own[0] != cidr("10.42.0.0/24") {
			t.Fatalf("own networks %v", plan.own)
		}
		wantClashes := []clash{
			{cidr("10.42.1.0/24"), "n2", "n5"}, {cidr("10.42.0.128/25"), "n1", "n6"},
		}
		if !reflect.DeepEqual(plan.clashes, wantClashes) {
			t.Fatalf("clashes %v, want %v", plan.clashes, wantClashes)
		}
	}
	// The younger of two claimants routes to nobody what it thought its own.
	plan := direct("n5").plan(peers)
	if len(plan.own) != 0 || plan.routes[cidr("10.42.1.0/24")].via != addr("10.0.0.2") {
		t.Fatalf("loser's plan: own %v, routes %v", plan.own, plan.routes)
	}
}

func TestDiffRoutes(t *testing.T) {
	to := func(a string) hop { return hop{via: addr(a)} }
	over := hop{via: addr("10.42.7.1"), overlay: true}
	have := map[netip.Prefix]hop{
		cidr("10.42.1.0/24"): to("10.0.0.2"), cidr("10.42.2.0/24"): to("10.0.0.3"), cidr("10.42.3.0/24"): to("10.0.0.4"), cidr("10.42.7.0/24"): to("10.0.0.7"),
	}
	want := map[netip.Prefix]hop{
		cidr("10.42.1.0/24"): to("10.0.0.2"), cidr("10.42.2.0/24"): to("10.0.0.9"), cidr("10.42.4.0/24"): to("10.0.0.5"), cidr("10.42.7.0/24"): over,
	}
	set, remove := diffRoutes(want, have)
	wantSet := map[netip.Prefix]hop{cidr("10.42.2.0/24"): to("10.0.0.9"), cidr("10.42.4.0/24"): to("10.0.0.5"), cidr("10.42.7.0/24"): over}
	if !maps.Equal(set, wantSet) || !reflect.DeepEqual(remove, []netip.Prefix{cidr("10.42.3.0/24"), cidr("10.42.7.0/24")}) {
		t.Fatalf("set %v, remove %v", set, remove)
	}
	if set, remove := diffRoutes(want, want); len(set) != 0 || len(remove) != 0 {
		t.Fatalf("nothing to do, but set %v, remove %v", set, remove)
	}
}

func TestPeerOf(t *testing.T) {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec:       corev1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24", "nonsense", "fd42::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"},
			{Type: corev1.NodeExternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "x"},
		}},
	}
	p := peerOf(node)
	if len(p.podCIDRs) != 2 || len(p.addrs) != 1 || p.addrs[0] != addr("10.0.0.1") {
		t.Fatalf("peerOf = %+v", p)
	}
	slim, err := slimNode(node.DeepCopy())
	if err != nil || !reflect.DeepEqual(peerOf(slim.(*corev1.Node)), p) {
		t.Fatalf("the cached node says something else: %+v, %v", slim, err)
	}
	if nodeChanged(node, slim) {
		t.Error("dropping unused fields counts as a change")
	}
	other := node.DeepCopy()
	other.Status.Addresses[1].Address = "10.0.0.2"
	if !nodeChanged(node, other) {
		t.Error("a new address counts as no change")
	}
}

func TestConflist(t *testing.T) {
	raw, err := buildConflist([]netip.Prefix{cidr("10.42.3.0/24")}, []netip.Prefix{cidr("10.42.0.0/16")}, 1450, "/run/moot/cni")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.1.0", "name": "moot",
		"plugins": []any{map[string]any{
			"type": "moot", "subnets": []any{"10.42.3.0/24"}, "mtu": 1450.0, "masquerade": true,
			"clusterCIDRs": []any{"10.42.0.0/16"}, "dataDir": "/run/moot/cni",
			"capabilities": map[string]any{"portMappings": true},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("conflist %s", raw)
	}
}

func TestReplaceFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net.d", "10-moot.conflist")
	if err := replaceFile(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(path); err != nil || !os.SameFile(first, second) {
		t.Errorf("the same content was written again: %v", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(path, []byte("two")); err != nil {
		t.Fatal(err)
	}
	for renamed := false; !renamed; { // what containerd waits for
		select {
		case event := <-watcher.Events:
			if event.Has(fsnotify.Write) {
				t.Errorf("a file was written in the directory: %v", event)
			}
			renamed = event.Has(fsnotify.Rename)
		case <-time.After(5 * time.Second):
			t.Fatal("no rename within the directory: the runtime would not load the file")
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "two" {
		t.Errorf("content %q, %v", got, err)
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("files left behind in %s: %v, %v", dir, entries, err)
		}
	}
}
