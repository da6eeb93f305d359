package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

// allocate reserves one address per subnet for the container. On an error
// nothing stays reserved.
func (n *network) allocate(containerID, ifName string) ([]*current.IPConfig, error) {
	store, err := disk.New(n.name, n.dataDir)
	if err != nil {
		return nil, fmt.Errorf("open address store: %w", err)
	}
	defer func() { _ = store.Close() }()
	if err := n.sweep(store); err != nil {
		return nil, err
	}

	ips := make([]*current.IPConfig, 0, len(n.subnets))
	for i, subnet := range n.subnets {
		r := allocator.Range{Subnet: types.IPNet{
			IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen()),
		}}
		if err := r.Canonicalize(); err != nil {
			return nil, fmt.Errorf("use subnet %s: %w", subnet, err)
		}
		alloc := allocator.NewIPAllocator(&allocator.RangeSet{r}, store, i)
		ip, err := alloc.Get(containerID, ifName, nil)
		if err != nil {
			releaseErr := releaseLocked(store, containerID, ifName)
			return nil, errors.Join(fmt.Errorf("allocate an address: %w", err), releaseErr)
		}
		bits := len(ip.Address.Mask) * 8
		ip.Address.Mask = net.CIDRMask(bits, bits)
		ips = append(ips, ip)
	}
	return ips, nil
}

// release frees what the container holds; it is no error if that is nothing.
func (n *network) release(containerID, ifName string) error {
	if _, err := os.Stat(filepath.Join(n.dataDir, n.name)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	store, err := disk.New(n.name, n.dataDir)
	if err != nil {
		return fmt.Errorf("open address store: %w", err)
	}
	defer func() { _ = store.Close() }()
	return releaseLocked(store, containerID, ifName)
}

func releaseLocked(store *disk.Store, containerID, ifName string) error {
	if err := store.Lock(); err != nil {
		return fmt.Errorf("lock address store: %w", err)
	}
	defer func() { _ = store.Unlock() }()
	if err := store.ReleaseByID(containerID, ifName); err != nil {
		return fmt.Errorf("release addresses: %w", err)
	}
	return nil
}

// sweep frees addresses that nobody holds: their file was made, and who made it
// was killed before it could write its name.
func (n *network) sweep(store *disk.Store) error {
	if err := store.Lock(); err != nil {
		return fmt.Errorf("lock address store: %w", err)
	}
	defer func() { _ = store.Unlock() }()
	dir := filepath.Join(n.dataDir, n.name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read address store: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if net.ParseIP(e.Name()) == nil || err != nil || info.Size() > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("free address %s: %w", e.Name(), err)
		}
	}
	return nil
}

// attachments lists the containers and interfaces that have addresses.
func (n *network) attachments() ([]types.GCAttachment, error) {
	dir := filepath.Join(n.dataDir, n.name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read address store: %w", err)
	}
	var out []types.GCAttachment
	for _, e := range entries {
		if net.ParseIP(e.Name()) == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // released meanwhile
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), disk.LineBreak)
		if a := (types.GCAttachment{ContainerID: id, IfName: ifName}); id != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}
