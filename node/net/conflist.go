package net

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
)

// conflist is a CNI network configuration list with the one plugin "moot",
// whose own documentation is in cmd/moot-shim/cni.
type conflist struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Subnets      []string        `json:"subnets"`
	MTU          int             `json:"mtu,omitempty"`
	Masquerade   bool            `json:"masquerade"`
	ClusterCIDRs []string        `json:"clusterCIDRs"`
	DataDir      string          `json:"dataDir"`
	Capabilities map[string]bool `json:"capabilities"`
}

// buildConflist renders the plugin's configuration for a node that has the pod
// networks podCIDRs.
func buildConflist(podCIDRs, cluster []netip.Prefix, mtu int, dataDir string) ([]byte, error) {
	p := plugin{
		Type:         "moot",
		MTU:          mtu,
		Masquerade:   true,
		DataDir:      dataDir,
		Capabilities: map[string]bool{"portMappings": true},
	}
	for _, cidr := range podCIDRs {
		p.Subnets = append(p.Subnets, cidr.String())
	}
	for _, cidr := range cluster {
		p.ClusterCIDRs = append(p.ClusterCIDRs, cidr.String())
	}
	raw, err := json.MarshalIndent(conflist{CNIVersion: "1.1.0", Name: "moot", Plugins: []plugin{p}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(raw, '\n'), nil
}

// replaceFile makes path hold data, all of it or what was there before, and
// leaves a file that holds it already alone: the container runtime reloads on
// every write.
func replaceFile(path string, data []byte) error {
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The runtime watches the directory, loads it anew when a file there is
	// written or renamed, and complains when there is nothing to load. So the
	// content is written elsewhere, and the last rename is within the directory.
	hidden := filepath.Join(dir, ".moot-cni")
	err = writeVia(filepath.Dir(dir), hidden, data)
	if errors.Is(err, syscall.EXDEV) {
		err = writeVia(dir, hidden, data)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	return err
}

// writeVia makes path hold data by way of a temporary file in dir.
func writeVia(dir, path string, data []byte) error {
	tmp, err := os.CreateTemp(dir, ".moot-cni-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
