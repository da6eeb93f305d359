package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Target is a backend that is gone, or may be.
type Target struct {
	Addr     netip.AddrPort
	Protocol Protocol
	// Opening ends only connections that wait for the backend's first answer
	// (TCP in SYN-SENT). One that is open may go on with it.
	Opening bool
}

// endpoint is an address and port of a protocol.
type endpoint struct {
	addr  netip.AddrPort
	proto Protocol
}

// targets says for each endpoint whether only what is opening to it is ended.
type targets map[endpoint]bool

// open says whether any open connections are to be ended.
func (t targets) open() bool {
	for _, opening := range t {
		if !opening {
			return true
		}
	}
	return false
}

func targetsOf(gone []Target) (targets, error) {
	out := targets{}
	for _, t := range gone {
		if !t.Addr.IsValid() {
			return nil, fmt.Errorf("disconnect %s from %q: not an address and port", t.Protocol, t.Addr)
		}
		at := endpoint{netip.AddrPortFrom(t.Addr.Addr().Unmap(), t.Addr.Port()), t.Protocol}
		opening, twice := out[at]
		out[at] = t.Opening && (opening || !twice)
	}
	return out, nil
}

// Disconnect destroys the sockets that a Service led to one of the backends, in
// this network namespace, in those under /run/netns and in those of processes in
// the cgroup, and forgets the connections from outside to them; it returns how
// many. A socket that asked for the backend's own address stays. The owner of a
// destroyed socket gets ECONNABORTED: from connect, or when it reads.
//
// A connection from outside that is still opening is not forgotten here: the
// programs lead it elsewhere once its backend has left the frontend.
func (b *Balancer) Disconnect(ctx context.Context, gone []Target) (int, error) {
	dead, err := targetsOf(gone)
	if err != nil {
		return 0, err
	}
	b.destroying.Lock()
	defer b.destroying.Unlock()
	destroyHere := b.destroyer(dead)
	spaces, err := b.namespaces()
	defer func() {
		for _, f := range spaces {
			_ = f.Close()
		}
	}()
	errs := []error{err}
	count := 0
	for _, space := range spaces {
		if err := ctx.Err(); err != nil {
			return count, err
		}
		err := inside(space, func() error {
			n, err := destroyHere()
			count += n
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("disconnect in %s: %w", space.Name(), err))
		}
	}
	if !dead.open() {
		return count, errors.Join(errs...)
	}
	n, err := b.packets.forget(func(p Protocol, at netip.AddrPort) bool {
		opening, is := dead[endpoint{at, p}]
		return is && !opening
	})
	return count + n, errors.Join(append(errs, err)...)
}

// namespaces opens each network namespace that can have sockets of Services. One
// that goes meanwhile has none.
func (b *Balancer) namespaces() ([]*os.File, error) {
	paths := []string{"/proc/thread-self/ns/net"}
	names, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, n := range names {
		paths = append(paths, filepath.Join("/run/netns", n.Name()))
	}
	err = filepath.WalkDir(b.cfg.Cgroup, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup that is gone has no processes
		}
		procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs")) //nolint:gosec // the cgroup we were given
		if err != nil {
			return nil //nolint:nilerr // gone, or threaded: then its root lists them
		}
		for pid := range strings.FieldsSeq(string(procs)) {
			paths = append(paths, "/proc/"+pid+"/ns/net")
		}
		return nil
	})
	var out []*os.File
	seen := map[[2]uint64]bool{}
	for _, path := range paths {
		f, openErr := os.Open(path) //nolint:gosec // a namespace
		if openErr != nil {
			continue
		}
		info, statErr := f.Stat()
		var id [2]uint64
		if statErr == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				id = [2]uint64{st.Dev, st.Ino}
			}
		}
		if statErr != nil || seen[id] || !isNamespace(f) {
			_ = f.Close()
			continue
		}
		seen[id] = true
		out = append(out, f)
	}
	return out, err
}

// isNamespace tells a namespace from the plain file that one is mounted on,
// before it is or after it was.
func isNamespace(f *os.File) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &fs) == nil && fs.Type == unix.NSFS_MAGIC //nolint:gosec // a descriptor
}

// inside runs f on a thread of its own in the network namespace.
func inside(space *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()                                                 // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil { //nolint:gosec // a descriptor
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (b *Balancer) destroyHere(dead targets) (int, error) {
	count := 0
	var errs []error
	for proto, list := range map[Protocol]func(uint8) ([]*netlink.Socket, error){
		TCP: netlink.SocketDiagTCP, UDP: netlink.SocketDiagUDP,
	} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := list(family)
			if err != nil {
				errs = append(errs, fmt.Errorf("list sockets: %w", err))
				continue
			}
			for _, s := range sockets {
				if !b.ledTo(s, proto, dead) {
					continue
				}
				switch err := destroy(s, proto); {
				case err == nil:
					count++
				case !errors.Is(err, unix.ENOENT): // it closed meanwhile
					errs = append(errs, fmt.Errorf("destroy socket: %w", err))
				}
			}
		}
	}
	return count, errors.Join(errs...)
}

// ledTo says whether a Service led the socket to one of the backends, and it is to
// be ended.
func (b *Balancer) ledTo(s *netlink.Socket, proto Protocol, dead targets) bool {
	remote, ok := netip.AddrFromSlice(s.ID.Destination)
	if !ok {
		return false
	}
	opening, is := dead[endpoint{netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort), proto}]
	if !is || opening && (proto != TCP || s.State != netlink.TCP_SYN_SENT) {
		return false
	}
	key := originKey{
		Cookie: uint64(s.ID.Cookie[1])<<32 | uint64(s.ID.Cookie[0]),
		Addr:   remote.As16(), Port: order(s.ID.DestinationPort), Proto: uint8(proto),
	}
	var from origin
	return b.coll.Maps["moot_origins"].Lookup(key, &from) == nil
}

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest struct {
	socket *netlink.Socket
	proto  Protocol
}

func (diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	id := r.socket.ID
	out := make([]byte, 0, r.Len())
	out = append(out, r.socket.Family, uint8(r.proto), 0, 0)
	out = binary.NativeEndian.AppendUint32(out, 0xffffffff) // in any state
	out = binary.BigEndian.AppendUint16(out, id.SourcePort)
	out = binary.BigEndian.AppendUint16(out, id.DestinationPort)
	for _, ip := range [][]byte{id.Source, id.Destination} {
		var addr [16]byte
		if a, ok := netip.AddrFromSlice(ip); ok && r.socket.Family == unix.AF_INET {
			four := a.Unmap().As4()
			copy(addr[:], four[:])
		} else if ok {
			addr = a.As16()
		}
		out = append(out, addr[:]...)
	}
	out = binary.NativeEndian.AppendUint32(out, id.Interface)
	out = binary.NativeEndian.AppendUint32(out, id.Cookie[0])
	return binary.NativeEndian.AppendUint32(out, id.Cookie[1])
}

func destroy(s *netlink.Socket, proto Protocol) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(diagRequest{s, proto})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
