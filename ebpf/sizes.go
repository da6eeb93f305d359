package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// sizedMaps are those that bpf/maps.h and conntrack.h size for each GiB of memory.
var sizedMaps = [...]string{
	"moot_services", "moot_slots", "moot_tables", "moot_members", "moot_affinity", "moot_origins", "moot_flows",
}

// maxFactor is how many GiB the maps are sized for at most: of 262144 Services'
// frontends, 1048576 backends of theirs and 131072 connections from outside. They
// take 11 MiB on a machine of 1 GiB and 94 MiB on one of 8 and more, empty.
const maxFactor = 8

// sizeFactor is the memory in GiB, up to the next power of two, within bounds:
// machines that report a little less than they have are sized alike.
func sizeFactor(memory uint64) uint32 {
	factor := uint32(1)
	for factor < maxFactor && uint64(factor)<<30 < memory {
		factor *= 2
	}
	return factor
}

// setSizes sizes the maps of spec by this machine's memory. What is pinned keeps
// its size until the machine boots, rather than be made anew without its content.
func setSizes(spec *ebpf.CollectionSpec, pins string) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read the size of memory: %w", err)
	}
	factor := sizeFactor(uint64(info.Totalram) * uint64(info.Unit)) //nolint:unconvert // 32 bits on some machines
	for _, name := range sizedMaps {
		m := spec.Maps[name]
		if m == nil {
			continue // not one of this program's
		}
		m.MaxEntries *= factor
		held, err := ebpf.LoadPinnedMap(filepath.Join(pins, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("load pinned map %s: %w", name, err)
		}
		if held.Type() == m.Type && held.KeySize() == m.KeySize && held.ValueSize() == m.ValueSize {
			m.MaxEntries = held.MaxEntries()
		}
		_ = held.Close()
	}
	return nil
}
