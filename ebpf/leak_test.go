package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// object is a program, map or link in the kernel: "prog", "map" or "link", and its
// number.
type object struct {
	kind string
	id   uint64
}

// alive says whether the kernel still has it.
func (o object) alive(t *testing.T) bool {
	t.Helper()
	var c interface{ Close() error }
	var err error
	switch o.kind {
	case "prog":
		c, err = ebpf.NewProgramFromID(ebpf.ProgramID(o.id))
	case "map":
		c, err = ebpf.NewMapFromID(ebpf.MapID(o.id))
	case "link":
		c, err = link.NewFromID(link.ID(o.id))
	}
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	return true
}

// opened lists what this process has open.
func opened(t *testing.T) map[object]bool {
	t.Helper()
	out := map[object]bool{}
	fds, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		f, err := os.Open(filepath.Join("/proc/self/fdinfo", fd.Name()))
		if err != nil {
			continue // that of the listing
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			kind, id, _ := strings.Cut(lines.Text(), "_id:")
			var n uint64
			if _, err := fmt.Sscan(id, &n); err == nil && (kind == "prog" || kind == "map" || kind == "link") {
				out[object{kind, n}] = true
			}
		}
		_ = f.Close()
	}
	return out
}

// pinned lists what the directory holds, and what its links hold.
func pinned(t *testing.T, dir string) map[object]bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[object]bool{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			out[object{"map", uint64(id)}] = true
			_ = m.Close()
			continue
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			t.Fatalf("%s is neither a map nor a link: %v", e.Name(), err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[object{"link", uint64(info.ID)}], out[object{"prog", uint64(info.Program)}] = true, true
		_ = l.Close()
	}
	return out
}

// After Close the kernel has what is pinned and no more of what was opened; after
// Remove it has nothing, and neither has this process.
func TestNothingIsLeft(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcx", true: "clsact"}[noTCX], func(t *testing.T) {
			cfg, in := inNode(t)
			if !in {
				return
			}
			cfg.NoTCX = noTCX
			silence(t) // makes a device
			ours := map[object]bool{}
			for range 3 { // the first opens, the others adopt
				b := openNode(t, cfg)
				if err := errors.Join(b.Resync(shop()), b.SetDevices([]string{"silent"}, []string{"silentp"})); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Disconnect(t.Context(), []Target{{Addr: netip.MustParseAddrPort("10.42.0.9:80"), Protocol: TCP}}); err != nil {
					t.Fatal(err)
				}
				maps.Copy(ours, opened(t))
				maps.Copy(ours, pinned(t, cfg.Pins))
				maps.Copy(ours, filters(t))
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				keep := pinned(t, cfg.Pins)
				maps.Copy(keep, filters(t))
				maps.Copy(keep, used(t, keep))
				if n := len(keep); n < 8+11+8+3 { // links and programs of sockets, pinned maps, programs of packets
					t.Errorf("%d objects live on", n)
				}
				for o := range keep {
					if !ours[o] {
						t.Errorf("%s %d lives on, which was neither opened nor pinned", o.kind, o.id)
					}
				}
				gone(t, "after Close", ours, keep)
			}
			if err := Remove(cfg); err != nil {
				t.Fatal(err)
			}
			gone(t, "after Remove", ours, nil)
			if left := opened(t); len(left) > 0 {
				t.Errorf("open after Remove: %v", left)
			}
		})
	}
}

// filters lists the programs that devices hold without a pin.
func filters(t *testing.T) map[object]bool {
	t.Helper()
	out := map[object]bool{}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			all, err := netlink.FilterList(l, parent)
			if err != nil {
				continue // it has no qdisc
			}
			for _, f := range all {
				if b, ok := f.(*netlink.BpfFilter); ok {
					out[object{"prog", uint64(b.Id)}] = true
				}
			}
		}
	}
	return out
}

// used lists the maps that the programs among the objects use.
func used(t *testing.T, of map[object]bool) map[object]bool {
	t.Helper()
	out := map[object]bool{}
	for o := range of {
		if o.kind != "prog" {
			continue
		}
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(o.id))
		if err != nil {
			t.Fatal(err)
		}
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			out[object{"map", uint64(id)}] = true
		}
		_ = prog.Close()
	}
	return out
}

// gone waits until the kernel has none of the objects but those to keep: it frees
// them a grace period after their last user is gone.
func gone(t *testing.T, when string, all, keep map[object]bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for o := range all {
		if keep[o] {
			if !o.alive(t) {
				t.Errorf("%s: %s %d is pinned and gone", when, o.kind, o.id)
			}
			continue
		}
		for o.alive(t) {
			if time.Now().After(deadline) {
				t.Errorf("%s: %s %d is left", when, o.kind, o.id)
				break
			}
			runtime.Gosched()
		}
	}
}
