package node

import (
	"context"
	"net/netip"
	"sync/atomic"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/node/net/proxy"
)

// addressDoubts joins what this node holds of the members with where they and
// their pods have their addresses.
type addressDoubts struct {
	agent    *gossip.Agent
	networks func() map[string][]netip.Prefix
	members  atomic.Pointer[map[string]proxy.Doubt]
}

func newAddressDoubts(agent *gossip.Agent, networks func() map[string][]netip.Prefix) *addressDoubts {
	return &addressDoubts{agent: agent, networks: networks}
}

// follow keeps up with the members until ctx ends.
func (d *addressDoubts) follow(ctx context.Context) {
	changed, cancel := d.agent.Subscribe()
	defer cancel()
	for {
		members := doubtsOf(d.agent.Members())
		d.members.Store(&members)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// of tells how much the node is doubted that an address belongs to.
func (d *addressDoubts) of(addr netip.Addr) int {
	members := d.members.Load()
	if members == nil || len(*members) == 0 {
		return 0
	}
	return int(doubtOf(addr, *members, d.networks()))
}

// doubtOf looks through the networks of the doubted, which are few. An address
// of nobody is not doubted.
func doubtOf(addr netip.Addr, members map[string]proxy.Doubt, networks map[string][]netip.Prefix) proxy.Doubt {
	for name, doubt := range members {
		for _, network := range networks[name] {
			if network.Contains(addr) {
				return doubt
			}
		}
	}
	return 0
}
