package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/join"
)

// firstNumber is the node number of a cluster's first member.
const firstNumber crdt.NodeNumber = 1

// membership is what a node keeps of the cluster it belongs to. It is decided
// once, when the node starts a cluster or joins one.
type membership struct {
	Name          string          `json:"name"`   // the node's, under which the others know it
	Number        crdt.NodeNumber `json:"number"` // part of every revision it issues
	ClusterCIDR   join.Networks   `json:"clusterCIDR"`
	ServiceCIDR   join.Networks   `json:"serviceCIDR"`
	ClusterDomain string          `json:"clusterDomain"`
	Seeds         []string        `json:"seeds,omitempty"` // members that were there when it joined, host:port

	// Complete says that the replica once held all that the cluster holds:
	// before that nothing may be served from it.
	Complete bool `json:"complete"`
	// Left says that the node left the cluster for good.
	Left bool `json:"left,omitempty"`
}

func (c *Config) membershipFile() string { return filepath.Join(c.DataDir, "membership.json") }

// loadMembership returns nil when the node belongs to no cluster yet.
func (c *Config) loadMembership() (*membership, error) {
	data, err := os.ReadFile(c.membershipFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read membership: %w", err)
	}
	var m membership
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w; restore it from a backup, or move %s away and join again", c.membershipFile(), err, c.DataDir)
	}
	return &m, nil
}

// IsMember reports whether the data directory belongs to a member of a cluster.
func (c *Config) IsMember() bool {
	_, err := os.Lstat(c.membershipFile())
	return err == nil
}

func (c *Config) saveMembership(m *membership) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode membership: %w", err)
	}
	if err := join.ReplaceFile(c.membershipFile(), append(data, '\n')); err != nil {
		return fmt.Errorf("keep membership: %w", err)
	}
	return nil
}

// adopt takes the settings that are the cluster's, not the node's. One that was
// given and differs is an error: it cannot be changed here.
func (c *Config) adopt(m *membership) error {
	var errs []error
	unset := DefaultConfig()
	if c.ClusterCIDR != unset.ClusterCIDR && c.ClusterCIDR != m.ClusterCIDR {
		errs = append(errs, differs("--cluster-cidr", c.ClusterCIDR, m.ClusterCIDR))
	}
	if c.ServiceCIDR != unset.ServiceCIDR && c.ServiceCIDR != m.ServiceCIDR {
		errs = append(errs, differs("--service-cidr", c.ServiceCIDR, m.ServiceCIDR))
	}
	if c.ClusterDomain != unset.ClusterDomain && c.ClusterDomain != m.ClusterDomain {
		errs = append(errs, differs("--cluster-domain", c.ClusterDomain, m.ClusterDomain))
	}
	if c.NodeName != m.Name {
		errs = append(errs, fmt.Errorf("--node-name %s: this node is member %s of its cluster; a member cannot change its name", c.NodeName, m.Name))
	}
	c.ClusterCIDR, c.ServiceCIDR, c.ClusterDomain = m.ClusterCIDR, m.ServiceCIDR, m.ClusterDomain
	return errors.Join(errs...)
}

func differs(flag string, given, have any) error {
	return fmt.Errorf("%s %v: the cluster has %v, which cannot be changed; leave the flag out", flag, given, have)
}
