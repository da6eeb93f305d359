package ebpf

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cc clang -strip llvm-strip -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" sock bpf/sock.c

// Config says where a [Balancer] works.
type Config struct {
	Cgroup        string // cgroup v2 directory whose processes' sockets are balanced
	Pins          string // directory on a bpffs, made if missing: programs, links and maps live on there
	NoTCX         bool   // attach to devices by clsact filters, as kernels before 6.6 need
	XDP           bool   // lead packets on in the driver of a device, where it can
	NoSockDestroy bool   // destroy sockets by sock_diag, as kernels before 6.5 need
	Log           *slog.Logger
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.Cgroup == "":
		return errors.New("ebpf: no cgroup given")
	case c.Pins == "":
		return errors.New("ebpf: no directory for pins given")
	case c.Log == nil:
		return errors.New("ebpf: no logger given")
	}
	return nil
}

// Balancer keeps the maps of the programs that balance Services. Its methods may
// be called concurrently. What it holds in the kernel outlives it.
type Balancer struct {
	cfg     Config
	coll    *ebpf.Collection
	packets *packets

	mu       sync.Mutex
	held     map[frontendKey]*entry
	next     uint32 // the next id or set that no entry has
	seed     maphash.Seed
	attached bool

	destroying sync.Mutex
	iterators  *iterators // nil before they are first needed, or without bpf_sock_destroy
}

// sharedMaps are those of maps.h.
var sharedMaps = [...]string{
	"moot_services", "moot_slots", "moot_tables", "moot_members", "moot_affinity", "moot_origins", "moot_addresses", "moot_sources",
}

const sockPrefix = "sock_"

// Open loads the programs, or adopts what is pinned: maps of the same layout are
// kept with what they hold, and the programs replaced without a gap. Maps of
// another layout are made anew, and then the programs before serve from theirs
// until the first [Balancer.Resync]. It must be called in the node's network
// namespace. A refusal of the kernel's verifier is an [*ebpf.VerifierError].
func Open(cfg Config) (*Balancer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Pins, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for pins: %w", err)
	}
	coll, err := loadSockets(cfg)
	if err != nil {
		return nil, err
	}
	b := &Balancer{cfg: cfg, coll: coll, held: map[frontendKey]*entry{}, next: 1, seed: maphash.MakeSeed()}
	if b.packets, err = openPackets(cfg, coll.Maps); err != nil {
		coll.Close()
		return nil, err
	}
	if err := b.adopt(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	wait, err := b.othersServe()
	if err == nil && !wait {
		err = b.attach()
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func loadSockets(cfg Config) (*ebpf.Collection, error) {
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: cfg.Pins}}
	spec, err := sockSpec(cfg.Pins)
	if err != nil {
		return nil, err
	}
	coll, err := load("socket programs", spec, opts)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		cfg.Log.Info("maps are made anew: their layout is another", "err", err)
		if err := removePins(cfg.Pins, sharedMaps[:]); err != nil {
			return nil, err
		}
		if spec, err = sockSpec(cfg.Pins); err != nil { // what is not pinned any more has no say in sizes
			return nil, err
		}
		coll, err = load("socket programs", spec, opts)
	}
	return coll, err
}

// othersServe says whether the programs that are attached use maps of another
// layout. The pins do not tell: those of the maps made anew may be of a process
// that ended before it had filled them.
func (b *Balancer) othersServe() (bool, error) {
	l, err := link.LoadPinnedLink(filepath.Join(b.cfg.Pins, sockPrefix+"connect4"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("load pinned link: %w", err)
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link: %w", err)
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return false, fmt.Errorf("find attached program: %w", err)
	}
	defer func() { _ = prog.Close() }()
	used, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("read attached program: %w", err)
	}
	ours, err := b.coll.Maps["moot_services"].Info()
	if err != nil {
		return false, fmt.Errorf("read map: %w", err)
	}
	maps, _ := used.MapIDs()
	id, ok := ours.ID()
	return ok && !slices.Contains(maps, id), nil
}

// sockSpec is what the socket programs are loaded from, in this network namespace.
func sockSpec(pins string) (*ebpf.CollectionSpec, error) {
	spec, err := loadSock()
	if err != nil {
		return nil, fmt.Errorf("read socket programs: %w", err)
	}
	for _, name := range sharedMaps {
		spec.Maps[name].Pinning = ebpf.PinByName
	}
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["node_netns"].Set(cookie); err != nil {
		return nil, fmt.Errorf("set network namespace: %w", err)
	}
	return spec, setSizes(spec, pins)
}

// load puts the programs into the kernel. What the verifier says against one is
// in the error, as [*ebpf.VerifierError]; %+v of that shows all of its log. Maps
// that replace those of spec keep their sizes.
func load(what string, spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) (*ebpf.Collection, error) {
	for name, m := range opts.MapReplacements {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", what, err)
	}
	return coll, nil
}

// netnsCookie returns what the programs know this network namespace by.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of the network namespace: %w", err)
	}
	return cookie, nil
}

// attach replaces the programs that are attached by these, or attaches these.
func (b *Balancer) attach() error {
	info, err := os.Stat(b.cfg.Cgroup)
	if err != nil {
		return fmt.Errorf("find cgroup: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("find cgroup %s: no inode", b.cfg.Cgroup)
	}
	for hook, kind := range map[string]ebpf.AttachType{
		"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
		"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg, "sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4": ebpf.AttachCGroupUDP4Recvmsg, "recvmsg6": ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername, "getpeername6": ebpf.AttachCgroupInet6GetPeername,
		"release": ebpf.AttachCgroupInetSockRelease,
	} {
		if err := b.attachHook(hook, kind, stat.Ino); err != nil {
			return fmt.Errorf("attach %s to %s: %w", hook, b.cfg.Cgroup, err)
		}
	}
	b.attached = true
	return nil
}

func (b *Balancer) attachHook(hook string, kind ebpf.AttachType, cgroup uint64) error {
	path, prog := filepath.Join(b.cfg.Pins, sockPrefix+hook), b.coll.Programs["moot_"+hook]
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer func() { _ = old.Close() }()
		if info, err := old.Info(); err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == cgroup {
			if err := old.Update(prog); err != nil {
				return fmt.Errorf("replace program: %w", err)
			}
			return nil
		}
		if err := old.Unpin(); err != nil { // of a cgroup that is gone, or another
			return fmt.Errorf("unpin link: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("load pinned link: %w", err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: b.cfg.Cgroup, Attach: kind, Program: prog})
	if err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pin link: %w", err), l.Close())
	}
	return l.Close()
}

// SetAddresses says which addresses are the node's own: on them NodePorts answer.
func (b *Balancer) SetAddresses(own []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, want := b.coll.Maps["moot_addresses"], map[[16]byte]bool{}
	for _, addr := range own {
		if !addr.IsValid() || addr.IsUnspecified() {
			return fmt.Errorf("add own address %q: not an address", addr)
		}
	}
	for _, addr := range own {
		want[addr.As16()] = true
		if err := m.Put(addr.As16(), uint8(1)); err != nil {
			return fmt.Errorf("add own address %s: %w", addr, full(m, err))
		}
	}
	var key [16]byte
	var value uint8
	var gone [][16]byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		if !want[key] {
			gone = append(gone, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list own addresses: %w", err)
	}
	return deleteAll(m, gone)
}

// SetDevices says where packets from elsewhere come in: the devices to the
// network outside, and those of the pod network between nodes. It is to be called
// again when their addresses change, and first after the first
// [Balancer.Resync].
func (b *Balancer) SetDevices(uplinks, overlay []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.packets.setDevices(uplinks, overlay)
}

// Close lets go of everything and leaves it pinned and forwarding.
func (b *Balancer) Close() error {
	b.destroying.Lock()
	defer b.destroying.Unlock()
	if b.iterators != nil {
		b.iterators.close()
	}
	b.packets.close()
	b.coll.Close()
	return nil
}

// Remove detaches all programs and unpins everything, also what another version
// left. It must be called in the node's network namespace.
func Remove(cfg Config) error {
	entries, err := os.ReadDir(cfg.Pins)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	errs := []error{removePackets(cfg.Pins)}
	for _, e := range entries {
		errs = append(errs, removePins(cfg.Pins, []string{e.Name()}))
	}
	errs = append(errs, os.Remove(cfg.Pins))
	return errors.Join(errs...)
}

func removePins(dir string, names []string) error {
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin %s: %w", name, err)
		}
	}
	return nil
}
