package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

func TestSizeFactor(t *testing.T) {
	const mib = 1 << 20
	for memory, want := range map[uint64]uint32{
		0: 1, 256 * mib: 1, 1023 * mib: 1, 1024 * mib: 1, 1025 * mib: 2, 1980 * mib: 2, 3900 * mib: 4,
		7900 * mib: 8, 8192 * mib: 8, 16384 * mib: 8, 1 << 50: 8,
	} {
		if got := sizeFactor(memory); got != want {
			t.Errorf("%d MiB: %d, want %d", memory/mib, got, want)
		}
	}
}

// Each map that the headers size by the memory is one that is multiplied.
func TestSizedMapsAreThoseOfTheHeaders(t *testing.T) {
	var named []string
	for _, header := range []string{"maps.h", "conntrack.h", "packet.h"} {
		text, err := os.ReadFile(filepath.Join("bpf", header))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`max_entries, PER_GIB\(\d+\)[^}]*\} (\w+) SEC`).FindAllStringSubmatch(string(text), -1) {
			named = append(named, m[1])
		}
	}
	slices.Sort(named)
	want := slices.Sorted(slices.Values(sizedMaps[:]))
	if !slices.Equal(named, want) {
		t.Errorf("by the headers %v, by the list %v", named, want)
	}
}

// A map of another size than this machine's memory asks for is adopted as it is,
// with what it holds; new ones are sized by the memory.
func TestPinnedMapsKeepTheirSize(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	spec, err := loadSock()
	if err != nil {
		t.Fatal(err)
	}
	small := spec.Maps["moot_affinity"].Copy()
	small.MaxEntries = 1000
	m, err := ebpf.NewMap(small)
	if err != nil {
		t.Fatal(err)
	}
	key, value := affinityKey{ID: 1 << 30}, affinity{Seen: 7}
	pin := filepath.Join(cfg.Pins, "moot_affinity")
	if err := errors.Join(os.MkdirAll(cfg.Pins, 0o700), m.Pin(pin), m.Put(key, value), m.Close()); err != nil {
		t.Fatal(err)
	}
	b := openNode(t, cfg)
	var is affinity
	if err := b.coll.Maps["moot_affinity"].Lookup(key, &is); err != nil || is != value {
		t.Errorf("what a map of another size held: %+v, %v", is, err)
	}
	packets, err := loadPacket()
	if err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	if err := errors.Join(setSizes(spec, fresh), setSizes(packets, fresh), b.Resync(shop())); err != nil {
		t.Fatal(err)
	}
	for _, name := range sizedMaps {
		m, want := b.coll.Maps[name], spec.Maps[name]
		if name == "moot_flows" {
			m, want = b.packets.coll.Maps[name], packets.Maps[name]
		}
		if name == "moot_affinity" {
			want = small
		}
		if m.MaxEntries() != want.MaxEntries || m.MaxEntries() < 1000 {
			t.Errorf("%s: room for %d entries, want %d", name, m.MaxEntries(), want.MaxEntries)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// What is made anew, because a map beside it has another layout, is sized anew.
func TestMapsMadeAnewAreSizedAnew(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	spec, err := loadPacket()
	if err != nil {
		t.Fatal(err)
	}
	small, other := spec.Maps["moot_flows"].Copy(), spec.Maps["moot_devices"].Copy()
	small.MaxEntries = 1000
	other.ValueSize, other.Value = other.ValueSize+8, nil
	if err := os.MkdirAll(cfg.Pins, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, old := range map[string]*ebpf.MapSpec{"moot_flows": small, "moot_devices": other} {
		m, err := ebpf.NewMap(old)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(m.Pin(filepath.Join(cfg.Pins, name)), m.Close()); err != nil {
			t.Fatal(err)
		}
	}
	b := openNode(t, cfg)
	if got := b.packets.coll.Maps["moot_flows"].MaxEntries(); got == small.MaxEntries {
		t.Errorf("moot_flows was made anew with room for %d entries, as before", got)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}
