package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/api"
	"github.com/mootkube/moot/node/dns"
	"github.com/mootkube/moot/node/kubelet"
	mootnet "github.com/mootkube/moot/node/net"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/node/runtime"
	"github.com/mootkube/moot/node/volume"
	"github.com/mootkube/moot/sched"
)

// How long a part may take to stop before it is left behind.
const (
	quickStop = 5 * time.Second
	dnsStop   = 7 * time.Second // CoreDNS gives queries in flight 5 of them
	slowStop  = 30 * time.Second
)

// The names of the parts that a node can do without for a while.
const (
	networkName = "pod network"
	dnsName     = "DNS"
	kubeletName = "kubelet"
)

// startAll starts the parts in the order ARCHITECTURE.md gives.
func (n *Node) startAll(ctx context.Context, s *stack, keys *pki.Bundle, r *replica, m *membership) error {
	exits := sched.CatchExits()
	etcdPart, err := n.etcdPart(r.db)
	if err != nil {
		return err
	}
	apiPart, err := n.apiPart(keys, r)
	if err != nil {
		return err
	}
	leadPart, err := n.leadPart(keys, exits, r.agent)
	if err != nil {
		return err
	}
	runtimePart, err := n.runtimePart()
	if err != nil {
		return err
	}
	kubeletPart, err := n.kubeletPart(keys, r.agent)
	if err != nil {
		return err
	}
	networkPart, pods, err := n.networkPart(keys, r, m)
	if err != nil {
		return err
	}
	proxyPart, err := n.proxyPart(keys, r.agent)
	if err != nil {
		return err
	}
	volumePart, err := n.volumePart(keys)
	if err != nil {
		return err
	}
	rotation, err := n.rotation(r)
	if err != nil {
		return err
	}
	n.board.measureBy(r.measure)
	for _, together := range [][]part{
		{n.statusPart(), n.addressPart(), n.storePart(r)},
		{n.gossipPart(r, m)},
		{etcdPart},
		{apiPart, runtimePart, rotationPart(rotation), n.registerPart(r, m)},
		{n.objectsPart(keys)},
	} {
		if err := s.start(ctx, together...); err != nil {
			return err
		}
	}
	n.control.open(n.controls(keys, r, m, rotation))
	// The pod network is known once the kubelet has registered the node and
	// the controllers have given it a range, so these become ready together.
	return s.start(ctx, leadPart, n.conflictPart(keys, r), n.orphanPart(r), proxyPart, networkPart, n.dnsPart(keys, r.agent, pods), volumePart, kubeletPart)
}

// untilReady makes a part's function of one that closes a channel when ready.
func untilReady(run func(context.Context) error, readyCh <-chan struct{}) func(context.Context, func()) error {
	return orReady(readyCh, func(ctx context.Context, _ func()) error { return run(ctx) })
}

// orReady takes a part for ready also once readyCh is closed.
func orReady(readyCh <-chan struct{}, run func(context.Context, func()) error) func(context.Context, func()) error {
	return func(ctx context.Context, ready func()) error {
		ctx, cancel := context.WithCancel(ctx)
		var group errgroup.Group
		group.Go(func() error {
			defer cancel()
			return run(ctx, ready)
		})
		group.Go(func() error {
			select {
			case <-readyCh:
				ready()
			case <-ctx.Done():
			}
			return nil
		})
		return group.Wait()
	}
}

func (n *Node) statusPart() part {
	return part{name: "status", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		return serveStatus(ctx, n.cfg.StatusSocket(), n.board.read, &n.control, ready)
	}}
}

func (n *Node) addressPart() part {
	return part{name: "address", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		group, held := errgroup.WithContext(ctx)
		ips := n.cfg.nodeIPs()
		var missing atomic.Int32
		missing.Store(int32(len(ips))) //nolint:gosec // two at most
		for _, ip := range ips {
			group.Go(func() error {
				return holdAddress(held, ip, n.log, func() {
					if missing.Add(-1) == 0 {
						ready()
					}
				})
			})
		}
		err := group.Wait()
		if errors.Is(err, ErrAddressChanged) {
			return fmt.Errorf("%w: %w", ErrStartAgain, err)
		}
		return err
	}}
}

func (n *Node) apiPart(keys *pki.Bundle, r *replica) (part, error) {
	cfg := api.DefaultConfig()
	cfg.Log = n.log
	cfg.EtcdSocket = n.cfg.EtcdSocket()
	cfg.NodeIP, cfg.Port = n.cfg.NodeIP, n.cfg.APIPort
	cfg.ServiceCIDRs, cfg.ClusterDomain = n.cfg.ServiceCIDR.All(), n.cfg.ClusterDomain
	cfg.BothFamilies = len(n.cfg.nodeIPs()) > 1
	cfg.PKI, cfg.Args = keys, n.cfg.APIServerArgs
	cfg.Cluster, cfg.Revision = keys.Cluster, r.db.Revision
	cfg.Past = func(key string) []byte { return r.db.Remembered([]byte(key)).Append(nil) }
	cfg.Leads = func() bool { return leads(r.agent) }
	cfg.CatchUp = func(ctx context.Context, _ crdt.Revision) {
		if err := r.agent.CatchUpShared(ctx); err != nil {
			n.log.Debug("a read goes on without all that the members have", "err", err)
		}
	}
	server, err := api.New(cfg)
	if err != nil {
		return part{}, err
	}
	return part{name: "kubernetes API", stopWithin: slowStop, run: untilReady(server.Run, server.Ready())}, nil
}

func (n *Node) runtimePart() (part, error) {
	cfg := runtime.DefaultConfig()
	cfg.Log, cfg.Version = n.log, Version
	cfg.DataDir, cfg.StateDir, cfg.Socket = n.cfg.DataDir, n.cfg.StateDir, n.cfg.RuntimeSocket()
	cfg.RegistryDirs = []string{n.cfg.RegistryDir}
	cfg.SystemdCgroup = n.systemdCgroup()
	containerd, err := runtime.New(cfg)
	if err != nil {
		return part{}, err
	}
	return part{name: "containerd", stopWithin: slowStop, run: untilReady(containerd.Run, containerd.Ready())}, nil
}

func (n *Node) systemdCgroup() bool {
	return n.cfg.CgroupDriver == "systemd" || n.cfg.CgroupDriver == "auto" && runtime.SystemdCgroups()
}

// podNetwork is what DNS is told by the pod network.
type podNetwork struct {
	gateways <-chan []netip.Addr // where DNS can listen, each time it is elsewhere
	networks func() map[string][]netip.Prefix
}

func (n *Node) networkPart(keys *pki.Bundle, r *replica, m *membership) (part, podNetwork, error) {
	cfg := mootnet.DefaultConfig()
	cfg.NodeName, cfg.NodeIPs, cfg.Log = n.cfg.NodeName, n.cfg.nodeIPs(), n.log
	cfg.ClusterCIDRs = n.cfg.ClusterCIDR.All()
	cfg.Mode, cfg.OverlayPort = n.cfg.Network, n.cfg.OverlayPort
	cfg.Kubeconfig = keys.Admin // it writes to Nodes and evicts pods, which a kubelet may not
	cfg.CNIDataDir = filepath.Join(n.cfg.StateDir, "cni")
	cfg.Number = func() int {
		n.memberMu.Lock()
		defer n.memberMu.Unlock()
		return int(m.Number)
	}
	cfg.Replace = func(ctx context.Context, from, to []string) error {
		return replacePodCIDRs(ctx, r.db, n.cfg.NodeName, from, to)
	}
	agent, err := mootnet.New(cfg)
	if err != nil {
		return part{}, podNetwork{}, err
	}
	gateways := make(chan []netip.Addr, 1)
	return part{name: networkName, stopWithin: quickStop, run: orReady(n.apiOnly, func(ctx context.Context, ready func()) error {
		return agent.Run(ctx, func(net mootnet.Network) {
			select {
			case <-gateways: // of before, which nobody has taken
			default:
			}
			gateways <- net.Gateways
			ready()
		})
	})}, podNetwork{gateways: gateways, networks: agent.Networks}, nil
}

// dnsPart starts the server anew when it has other addresses to listen on.
func (n *Node) dnsPart(keys *pki.Bundle, agent *gossip.Agent, pods podNetwork) part {
	return part{name: dnsName, stopWithin: dnsStop, run: orReady(n.apiOnly, func(ctx context.Context, ready func()) error {
		doubts := newAddressDoubts(agent, pods.networks)
		var watch sync.WaitGroup
		defer watch.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		watch.Go(func() { doubts.follow(ctx) })
		var listen []netip.Addr
		select {
		case listen = <-pods.gateways:
		case <-ctx.Done():
			return nil
		}
		for ctx.Err() == nil {
			serving, end := context.WithCancel(ctx)
			var group errgroup.Group
			group.Go(func() error {
				defer end()
				return n.serveDNS(serving, keys, listen, doubts.of, ready)
			})
			select {
			case listen = <-pods.gateways:
				end()
			case <-serving.Done():
			}
			if err := group.Wait(); err != nil {
				return err
			}
		}
		return nil
	})}
}

func (n *Node) serveDNS(ctx context.Context, keys *pki.Bundle, listen []netip.Addr, doubt func(netip.Addr) int, ready func()) error {
	cfg := dns.DefaultConfig()
	cfg.Listen, cfg.Service, cfg.Doubt = listen, n.cfg.dnsServiceIPs(), doubt
	cfg.NodeName, cfg.Domain, cfg.Kubeconfig, cfg.Log = n.cfg.NodeName, n.cfg.ClusterDomain, keys.DNS, n.log
	cfg.StateDir = filepath.Join(n.cfg.DataDir, "dns")
	cfg.RestoreKlog = func() { redirectUpstreamLogs(n.log) }
	// An API that answers is worth more than one that waits for a port which
	// another program on this machine has.
	cfg.Idle = func(err error) {
		n.board.without(dnsName, err.Error())
		ready()
	}
	server, err := dns.New(cfg)
	if err != nil {
		return err
	}
	return server.Run(ctx, func() {
		n.board.without(dnsName, "")
		ready()
		if err := n.services.SetServing(dnsHome(), true); err != nil {
			n.log.Warn("names are asked of other nodes for now", "err", err)
		}
	})
}

func (n *Node) volumePart(keys *pki.Bundle) (part, error) {
	cfg := volume.DefaultConfig()
	cfg.NodeName, cfg.Kubeconfig, cfg.Log = n.cfg.NodeName, keys.Volume, n.log
	cfg.Dir = filepath.Join(n.cfg.DataDir, "volumes")
	provisioner, err := volume.New(cfg)
	if err != nil {
		return part{}, err
	}
	return part{name: "volumes", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		ready() // claims wait for it anyway
		return provisioner.Run(ctx)
	}}, nil
}

// kubeletPart runs without a kubelet when its last starts took the daemon
// down: an API that answers and says why is worth more than a crash loop.
func (n *Node) kubeletPart(keys *pki.Bundle, members *gossip.Agent) (part, error) {
	cfg := kubelet.DefaultConfig()
	cfg.Log, cfg.NodeName, cfg.NodeIPs = n.log, n.cfg.NodeName, n.cfg.nodeIPs()
	cfg.GuardFile = filepath.Join(n.cfg.DataDir, "kubelet-starts")
	cfg.RuntimeSocket, cfg.Kubeconfig = n.cfg.RuntimeSocket(), keys.Kubelet
	cfg.ClientCA, cfg.ServingCert, cfg.ServingKey = keys.CA.Cert, keys.KubeletServing.Cert, keys.KubeletServing.Key
	cfg.ClusterDNS, cfg.ClusterDomain = n.cfg.dnsServiceIPs(), n.cfg.ClusterDomain
	cfg.CgroupRoot, cfg.ExtraArgs = n.cfg.CgroupRoot, n.cfg.KubeletArgs
	if n.systemdCgroup() {
		cfg.CgroupDriver = "systemd"
	}
	var err error
	cfg.ResolvConf, err = dns.PodResolvConf(dns.HostResolvConfs(), filepath.Join(n.cfg.DataDir, "dns"), n.cfg.dnsServiceIPs()[0])
	if err != nil {
		return part{}, err
	}
	problems := kubelet.Preflight(cfg)
	if err := kubelet.Fatal(problems); err != nil {
		return part{}, err
	}
	for _, p := range problems {
		n.log.Warn("kubelet check", "problem", p.String())
	}
	agent, err := kubelet.New(cfg)
	if err != nil {
		return part{}, err
	}
	return part{name: kubeletName, stopWithin: slowStop, run: func(ctx context.Context, ready func()) error {
		if n.cfg.Network == mootnet.ModeNone {
			// Who installs the network does it through the API of this daemon,
			// which a service manager would end if it did not become ready.
			n.board.without(networkName, "with --network none the Node is not ready until a CNI plugin has its configuration in /etc/cni/net.d")
			ready()
		}
		for {
			err := agent.Run(ctx, func() {
				n.board.without(kubeletName, "")
				n.board.without(networkName, "")
				n.tellKubelet(members, false)
				ready()
			})
			loop, ok := errors.AsType[*kubelet.CrashLoopError](err)
			if !ok {
				return err
			}
			n.serveAPIOnly(loop)
			n.tellKubelet(members, true)
			ready()
			if !pause(ctx, time.Until(loop.Until)) {
				return nil
			}
		}
	}}, nil
}

// tellKubelet lets the leader know whether this node looks after its pods.
func (n *Node) tellKubelet(members *gossip.Agent, down bool) {
	if err := members.SetNoPods(down); err != nil {
		n.log.Warn("the members were not told of the kubelet", "down", down, "err", err)
	}
}

// serveAPIOnly lets the start go on without a kubelet, and says why.
func (n *Node) serveAPIOnly(loop *kubelet.CrashLoopError) {
	n.log.Error("serving the API without a kubelet", "err", loop)
	n.board.without(kubeletName, loop.Error())
	n.apiOnlyOnce.Do(func() { close(n.apiOnly) })
}

// pause waits, and tells whether it could.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// How long the objects of the daemon's own parts may take to be written, and
// how long to wait before it is tried again.
const (
	objectsWithin = 15 * time.Second
	objectsRetry  = 5 * time.Second
)

// objectsPart tries once before the start goes on, and then until it has
// worked: a webhook whose pod is down, on this node for one, may refuse it.
func (n *Node) objectsPart(keys *pki.Bundle) part {
	return part{name: "cluster objects", stopWithin: quickStop, run: func(ctx context.Context, ready func()) error {
		for {
			attempt, cancel := context.WithTimeout(ctx, objectsWithin)
			err := n.ensureObjects(attempt, keys)
			cancel()
			ready()
			if err == nil {
				<-ctx.Done()
				return nil
			}
			n.log.Warn("objects of DNS and volumes are not up to date, trying again", "err", err)
			if !pause(ctx, objectsRetry) {
				return nil
			}
		}
	}}
}

// ensureObjects makes the objects that the daemon's own parts need.
func (n *Node) ensureObjects(ctx context.Context, keys *pki.Bundle) error {
	client, err := adminClient(keys)
	if err != nil {
		return err
	}
	if err := volume.Ensure(ctx, client); err != nil {
		return err
	}
	return dns.Ensure(ctx, client, dns.Objects(n.cfg.dnsServiceIPs(), n.cfg.ClusterDomain))
}
