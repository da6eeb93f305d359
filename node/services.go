package node

import (
	"context"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/node/dns"
	mootnet "github.com/mootkube/moot/node/net"
	"github.com/mootkube/moot/node/net/balance"
	"github.com/mootkube/moot/node/net/proxy"
	"github.com/mootkube/moot/node/pki"
)

// apiHome and dnsHome are the Services that every node's daemon serves.
func apiHome() types.NamespacedName {
	return types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
}

func dnsHome() types.NamespacedName { return dns.Service() }

// proxyPart serves Services, with the members' health as this node sees it.
func (n *Node) proxyPart(keys *pki.Bundle, agent *gossip.Agent) (part, error) {
	cfg := proxy.DefaultConfig()
	cfg.NodeName, cfg.NodeIPs, cfg.ClusterCIDRs = n.cfg.NodeName, n.cfg.nodeIPs(), n.cfg.ClusterCIDR.All()
	cfg.Kubeconfig, cfg.Mode, cfg.Log = keys.Proxy, n.cfg.ServiceProxy, n.log
	cfg.XDP = n.cfg.ServiceXDP
	cfg.Overlay = []string{mootnet.OverlayLink}
	var api []netip.AddrPort
	for _, ip := range n.cfg.nodeIPs() {
		api = append(api, netip.AddrPortFrom(ip, n.cfg.apiAddr().Port()))
	}
	cfg.Homes = []balance.Home{{Service: apiHome(), Own: api, Serving: true}, {Service: dnsHome()}}
	cfg.Doubts = func() map[string]proxy.Doubt { return doubtsOf(agent.Members()) }
	cfg.Speaks = func() bool { return leads(agent) }
	p, err := proxy.New(cfg)
	if err != nil {
		return part{}, err
	}
	n.services = p
	return part{name: "services", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		changed, cancel := agent.Subscribe()
		defer cancel()
		return p.Run(ctx, changed, func(s proxy.Serving) {
			n.board.update(func(st *Status) { st.Services = s })
			ready()
		})
	}}, nil
}

// doubtsOf names the members whose pods are not to be counted on.
func doubtsOf(members []gossip.Member) map[string]proxy.Doubt {
	out := map[string]proxy.Doubt{}
	for _, m := range members {
		switch {
		case m.Self:
		case m.State == gossip.StateSuspect:
			out[m.Name] = proxy.Suspect
		case slices.Contains([]gossip.State{gossip.StateDead, gossip.StateLeft}, m.State):
			out[m.Name] = proxy.Dead
		}
	}
	return out
}
