package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// Maps of another layout are made anew; until they are filled, the programs
// before serve from theirs.
func TestMapsOfAnotherLayoutAreReplacedWithoutAGap(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	one, two := named(t, "10.42.0.2"), named(t, "10.42.0.3")
	f := frontend("10.43.0.50:80", TCP)
	if err := b.Resync(map[Frontend]Service{f: {Backends: []Backend{one}}}); err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(cfg.Pins, "moot_services")
	if err := errors.Join(b.Close(), os.Remove(pin)); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Pin(pin), other.Close()); err != nil {
		t.Fatal(err)
	}
	b = openNode(t, cfg)
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got != "10.42.0.2" {
		t.Errorf("before the maps are filled: %s", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openNode(t, cfg) // a daemon that ended before it had filled them
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got != "10.42.0.2" {
		t.Errorf("before the maps are filled, opened again: %s", got)
	}
	if err := b.Resync(map[Frontend]Service{f: {Backends: []Backend{two}}}); err != nil {
		t.Fatal(err)
	}
	if _, got := connect(t, "tcp", "10.43.0.50:80"); got != "10.42.0.3" {
		t.Errorf("after: %s", got)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}
