package net

import (
	stdnet "net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/node/net/host"
)

// inNamespace runs the rest of the test in a network namespace of its own, with
// an uplink eth0 at 10.0.0.1/24.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1400}, PeerName: "eth0p"}
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	peerLink, err := netlink.LinkByName("eth0p")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(uplink, &netlink.Addr{IPNet: ipNet(cidr("10.0.0.1/24"))}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []netlink.Link{uplink, peerLink} {
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRoutesInKernel(t *testing.T) {
	inNamespace(t)
	_, foreign, err := stdnet.ParseCIDR("192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: foreign, Gw: addr("10.0.0.9").AsSlice()}); err != nil {
		t.Fatal(err)
	}
	want := map[netip.Prefix]hop{cidr("10.42.1.0/24"): {via: addr("10.0.0.2")}, cidr("10.42.2.0/24"): {via: addr("10.0.0.3")}}
	for range 2 { // the second time there is nothing to do
		if err := syncRoutes(want, 0); err != nil {
			t.Fatal(err)
		}
	}
	want = map[netip.Prefix]hop{cidr("10.42.1.0/24"): {via: addr("10.0.0.7")}}
	if err := syncRoutes(want, 0); err != nil {
		t.Fatal(err)
	}
	have, err := ourRoutes(0)
	if err != nil || len(have) != 1 || have[cidr("10.42.1.0/24")].via != addr("10.0.0.7") {
		t.Fatalf("routes in the kernel %v, %v, want %v", have, err, want)
	}
	// A gateway on no link of ours fails, and does not keep the others from being set.
	want[cidr("10.42.5.0/24")], want[cidr("10.42.6.0/24")] = hop{via: addr("172.31.0.1")}, hop{via: addr("10.0.0.6")}
	if err := syncRoutes(want, 0); err == nil {
		t.Error("an unreachable gateway was accepted")
	}
	if have, err := ourRoutes(0); err != nil || have[cidr("10.42.6.0/24")].via != addr("10.0.0.6") {
		t.Errorf("routes in the kernel %v, %v", have, err)
	}
	if err := syncRoutes(nil, 0); err != nil {
		t.Fatal(err)
	}
	left, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil || !slices.ContainsFunc(left, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == "192.0.2.0/24" }) {
		t.Errorf("another's route is gone: %v, %v", left, err)
	}
}

func TestGatewayInKernel(t *testing.T) {
	inNamespace(t)
	cluster := []netip.Prefix{cidr("10.42.0.0/16")}
	addrs := func() []string {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		list, err := netlink.AddrList(lo, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, a := range list {
			if !a.IP.IsLoopback() {
				out = append(out, a.IPNet.String())
			}
		}
		return out
	}
	for range 2 {
		if err := setGateway(cluster, []netip.Addr{gatewayOf(cidr("10.42.3.0/24"))}); err != nil {
			t.Fatal(err)
		}
	}
	if got := addrs(); !slices.Equal(got, []string{"10.42.3.1/32"}) {
		t.Fatalf("loopback addresses %v", got)
	}
	if err := setGateway(cluster, []netip.Addr{addr("10.42.4.1")}); err != nil {
		t.Fatal(err)
	}
	if got := addrs(); !slices.Equal(got, []string{"10.42.4.1/32"}) {
		t.Fatalf("loopback addresses after a new network %v", got)
	}
	if err := setGateway(cluster, nil); err != nil {
		t.Fatal(err)
	}
	if got := addrs(); len(got) != 0 {
		t.Fatalf("loopback addresses after the cleanup %v", got)
	}
	if err := host.Forward(false); err != nil {
		t.Fatal(err)
	}
	ra := func() string {
		value, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(value))
	}
	if err := host.Forward(true); err != nil || ra() != "2" {
		t.Fatalf("IPv6 forwarding: %v, routers' word is taken: %s, want 2", err, ra())
	}
	if mtu, err := mtuOf(addr("10.0.0.1")); err != nil || mtu != 1400 {
		t.Fatalf("mtu %d, %v, want 1400", mtu, err)
	}
	if _, err := mtuOf(addr("10.9.9.9")); err == nil {
		t.Error("an address nobody has got an MTU")
	}
}
