package leak

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BPF lists the eBPF programs, maps and links of the whole kernel by id, pinned
// or not. It is apart from Take because ids tell no owner: it is of use only
// where nothing else on the machine loads programs in the meantime. The kernel
// frees an object some time after its last reference went, so that whoever
// compares has to wait for the difference to vanish. It needs root.
func BPF() (Snapshot, error) {
	s := Snapshot{}
	for kind, command := range map[string]uintptr{
		"bpf program": unix.BPF_PROG_GET_NEXT_ID,
		"bpf map":     unix.BPF_MAP_GET_NEXT_ID,
		"bpf link":    unix.BPF_LINK_GET_NEXT_ID,
	} {
		set, err := ids(command)
		if err != nil {
			return nil, fmt.Errorf("list each %s: %w", kind, err)
		}
		s[kind] = set
	}
	return s, nil
}

// ids walks the ids of one kind in ascending order.
func ids(command uintptr) (map[string]bool, error) {
	set := map[string]bool{}
	var attr struct{ start, next, flags uint32 } // as in union bpf_attr
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)) //nolint:gosec // the system call takes a pointer
		runtime.KeepAlive(&attr)
		if errors.Is(errno, unix.ENOENT) {
			return set, nil
		}
		if errno != 0 {
			return nil, errno
		}
		set[fmt.Sprintf("id %d", attr.next)] = true
		attr.start = attr.next
	}
}
