package leak

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A map that nobody pinned is found while a descriptor holds it, and is gone
// after.
func TestBPFFindsAMap(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before, err := BPF()
	if err != nil {
		t.Fatal(err)
	}
	attr := struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatal(errno)
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`map_id:\s*(\d+)`).FindSubmatch(info)
	if id == nil {
		t.Fatalf("no id in %s", info)
	}
	line := "bpf map: id " + string(id[1])
	listed := func() bool {
		now, err := BPF()
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(now.Since(before), line)
	}
	if !listed() {
		t.Errorf("%s is not listed", line)
	}
	if err := unix.Close(int(fd)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for listed() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s is still there", line)
		}
	}
}
