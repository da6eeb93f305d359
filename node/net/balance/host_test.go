package balance

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplinks are the devices others reach this machine by: not those of pods, not
// the overlay, not what has no address.
func TestReadHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for _, d := range []struct{ name, peer, addr string }{
				{"eth0", "eth0p", "192.0.2.1/24"}, {"pod1", "pod1p", "10.42.0.1/32"},
				{"br0", "", "198.51.100.1/24"}, {"slave0", "slave0p", ""}, {"moot-vxlan", "moot-vxlanp", "10.42.0.1/32"},
			} {
				var link netlink.Link = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: d.name}, PeerName: d.peer}
				if d.peer == "" {
					link = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: d.name}}
				}
				if err := netlink.LinkAdd(link); err != nil {
					return fmt.Errorf("add %s: %w", d.name, err)
				}
				if err := addAddr(link, d.addr); err != nil {
					return err
				}
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := addAddr(lo, "10.42.0.1/32"); err != nil {
				return err
			}
			h, err := readHost([]string{"moot-vxlan", "absent"})
			if err != nil {
				return err
			}
			const want = "{[10.42.0.1 192.0.2.1 198.51.100.1] [br0 eth0] [moot-vxlan] []}"
			if got := fmt.Sprintf("{%v %v %v %v}", h.own, h.uplinks, h.overlay, h.unserved); got != want {
				return fmt.Errorf("read %s, want %s", got, want)
			}
			overlay, err := netlink.LinkByName("moot-vxlan")
			if err != nil {
				return err
			}
			// Its address is no new one of the node's, but what it speaks from.
			if err := netlink.AddrDel(overlay, &netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(10, 42, 0, 1))}); err != nil {
				return err
			}
			bare, err := readHost([]string{"moot-vxlan", "absent"})
			if err != nil {
				return err
			}
			if bare.equal(h) || !slices.Equal(bare.own, h.own) {
				return fmt.Errorf("with an overlay without address %v; before %v", bare, h)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func addAddr(l netlink.Link, text string) error {
	if text == "" {
		return nil
	}
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, addr)
}
