package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace of the test's own, with an interface eth0
// that is up and has no address.
type namespace struct {
	t      *testing.T
	handle netns.NsHandle
	eth0   netlink.Link
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	handle, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = handle.Close() })
	eth0 := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}
	if err := errors.Join(netlink.LinkAdd(eth0), netlink.LinkSetUp(eth0)); err != nil {
		t.Skipf("no bridge: %v", err)
	}
	return &namespace{t: t, handle: handle, eth0: eth0}
}

func (n *namespace) plug(cidr string) error {
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(n.eth0, addr)
}

// hold runs holdAddress in the namespace; the channel has its outcome.
func (n *namespace) hold(ctx context.Context, ip netip.Addr, ready func()) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // as above
		if err := netns.Set(n.handle); err != nil {
			done <- err
			return
		}
		done <- holdAddress(ctx, ip, slog.New(slog.DiscardHandler), ready)
	}()
	return done
}

func TestStandInHoldsTheAddressUntilAnInterfaceHasIt(t *testing.T) {
	ns := newNamespace(t)
	ip := netip.MustParseAddr("10.9.0.5")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	links, quit := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	defer close(quit)
	if err := netlink.LinkSubscribe(links, quit); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	done := ns.hold(ctx, ip, func() { close(ready) })
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended with %v", err)
	}
	if !hasAddress(ip) {
		t.Fatal("no interface has the address")
	}
	if err := ns.plug("10.9.0.5/24"); err != nil {
		t.Fatal(err)
	}
	for gone := false; !gone; {
		select {
		case u := <-links:
			gone = u.Header.Type == unix.RTM_DELLINK && u.Attrs().Name == standInLink
		case err := <-done:
			t.Fatalf("ended with %v", err)
		}
	}
	if !hasAddress(ip) {
		t.Error("the address went with the stand-in")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStandInGivesWayToAnotherAddress(t *testing.T) {
	ns := newNamespace(t)
	ready := make(chan struct{})
	done := ns.hold(t.Context(), netip.MustParseAddr("10.9.0.5"), func() { close(ready) })
	<-ready
	if err := ns.plug("10.9.7.7/24"); err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.IPv4(10, 9, 7, 1)}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrAddressChanged) {
		t.Errorf("ended with %v, want ErrAddressChanged", err)
	}
}

func TestNoStandInWhereItIsNotNeeded(t *testing.T) {
	ns := newNamespace(t)
	ip := netip.MustParseAddr("10.9.0.5")
	if err := ns.plug("10.9.0.5/24"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := ns.hold(ctx, ip, cancel)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(standInLink); err == nil {
		t.Error("there is a stand-in")
	}
}

// A kernel that ends the watch, as it does to who cannot keep up, ends nothing
// else.
func TestHoldAddressWatchesAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	watches := make(chan int, 2)
	watch := func(ctx context.Context) (<-chan struct{}, error) {
		changed := make(chan struct{})
		watches <- len(watches)
		if len(watches) == 1 {
			close(changed)
		} else {
			context.AfterFunc(ctx, func() { close(changed) })
		}
		return changed, ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		done <- holdWatching(ctx, netip.MustParseAddr("127.0.0.1"), slog.New(slog.DiscardHandler), func() {}, watch)
	}()
	for len(watches) < 2 {
		select {
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
