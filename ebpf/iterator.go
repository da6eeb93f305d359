package ebpf

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -no-global-types -cc clang -strip llvm-strip -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" destroy bpf/destroy.c

// deadKey is struct dead_key of bpf/destroy.c.
type deadKey struct {
	Addr  [16]byte
	Port  [2]byte
	Proto uint8
	Pad   uint8
}

const onlyOpening = 1 // OPENING

// iterators destroy sockets by bpf_sock_destroy, in one pass in the kernel. They
// are not pinned: nothing of them has to outlive the process.
type iterators struct {
	coll  *ebpf.Collection
	links []*link.Iter
}

// loadIterators needs kernel 6.5.
func loadIterators(origins *ebpf.Map) (*iterators, error) {
	defer btf.FlushKernelSpec() // memory that the package would keep
	spec, err := loadDestroy()
	if err != nil {
		return nil, fmt.Errorf("read socket iterators: %w", err)
	}
	coll, err := load("socket iterators", spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"moot_origins": origins},
	})
	if err != nil {
		return nil, err
	}
	it := &iterators{coll: coll}
	for _, name := range []string{"moot_destroy_tcp", "moot_destroy_udp"} {
		l, err := link.AttachIter(link.IterOptions{Program: coll.Programs[name]})
		if err != nil {
			it.close()
			return nil, fmt.Errorf("attach %s: %w", name, err)
		}
		it.links = append(it.links, l)
	}
	return it, nil
}

func (it *iterators) close() {
	for _, l := range it.links {
		_ = l.Close()
	}
	it.coll.Close()
}

// aim says whose sockets the next runs destroy.
func (it *iterators) aim(dead targets) error {
	m := it.coll.Maps["moot_dead"]
	var old, keys []deadKey
	var which []uint8
	if err := list(m, func(key deadKey, _ uint8) { old = append(old, key) }); err != nil {
		return err
	}
	for at, opening := range dead {
		keys = append(keys, deadKey{Addr: at.addr.Addr().As16(), Port: order(at.addr.Port()), Proto: uint8(at.proto)})
		if opening {
			which = append(which, onlyOpening)
		} else {
			which = append(which, 0)
		}
	}
	return errors.Join(deleteAll(m, old), putAll(m, keys, which))
}

// run destroys them in the network namespace of the calling thread.
func (it *iterators) run() (int, error) {
	count, refused := 0, 0
	var errs []error
	for _, l := range it.links {
		r, err := l.Open()
		if err != nil {
			errs = append(errs, fmt.Errorf("list sockets: %w", err))
			continue
		}
		outcomes, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			errs = append(errs, fmt.Errorf("destroy sockets: %w", err))
		}
		for _, failed := range outcomes {
			if failed == 0 {
				count++
			} else {
				refused++
			}
		}
	}
	if refused > 0 {
		errs = append(errs, fmt.Errorf("destroy sockets: the kernel refused %d", refused))
	}
	return count, errors.Join(errs...)
}

// destroyer returns what destroys, in the network namespace of the calling
// thread, the sockets that Services led to the dead: the iterators where the
// kernel has bpf_sock_destroy, else sock_diag.
func (b *Balancer) destroyer(dead targets) func() (int, error) {
	netlink := func() (int, error) { return b.destroyHere(dead) }
	if b.cfg.NoSockDestroy {
		return netlink
	}
	if b.iterators == nil {
		it, err := loadIterators(b.coll.Maps["moot_origins"])
		if err != nil {
			b.cfg.Log.Info("sockets to dead backends are destroyed by sock_diag: bpf_sock_destroy cannot be used", "err", err)
			b.cfg.NoSockDestroy = true
			return netlink
		}
		b.iterators = it
	}
	if err := b.iterators.aim(dead); err != nil {
		b.cfg.Log.Warn("sockets to dead backends are destroyed by sock_diag this time", "err", err)
		return netlink
	}
	return b.iterators.run
}
