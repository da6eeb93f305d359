// Package simulate runs clusters of gossip agents in one process, on a network
// in memory whose links can be slow, lossy and cut.
//
// It is meant to run inside a testing/synctest bubble, where time passes as
// fast as the machine allows: everything it waits on, it waits on in ways that
// let the bubble's clock advance. The agents are the real ones, with the real
// serf and memberlist; only sockets and TLS are left out, and [Replica] keeps
// in memory what the store keeps on disk.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mootkube/moot/gossip"
)

// Network is a network in memory. It implements [gossip.Network].
type Network struct {
	// Latency is the time a byte takes one way, Jitter what comes on top at
	// random. They are set before the network is used.
	Latency, Jitter time.Duration

	mu    sync.Mutex
	loss  float64 // see Lose
	rand  *rand.Rand
	ports map[netip.AddrPort]*port
	conns map[*conn]struct{}
	side  map[netip.Addr]int  // which part of a cut network a node is in
	dark  map[netip.Addr]bool // nodes without power: they neither send nor answer
}

// NewNetwork returns a network whose chances follow from seed.
func NewNetwork(seed uint64) *Network {
	return &Network{
		Latency: 200 * time.Microsecond, Jitter: 200 * time.Microsecond,
		rand:  rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // chances are to be repeatable
		ports: make(map[netip.AddrPort]*port),
		conns: make(map[*conn]struct{}),
		side:  make(map[netip.Addr]int),
		dark:  make(map[netip.Addr]bool),
	}
}

// Cut separates the given addresses from all others. Nothing crosses a cut;
// streams across it hang.
func (n *Network) Cut(addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.side)
	for _, a := range addrs {
		n.side[a] = 1
	}
}

// Heal undoes Cut.
func (n *Network) Heal() {
	n.mu.Lock()
	clear(n.side)
	n.mu.Unlock()
	n.wakeAll()
}

// Dark takes a node off the network as a loss of power does: its peers hear
// nothing, not even that its connections end. Light undoes that.
func (n *Network) Dark(a netip.Addr) {
	n.mu.Lock()
	n.dark[a] = true
	n.mu.Unlock()
}

// Light brings a node back that [Network.Dark] took off.
func (n *Network) Light(a netip.Addr) {
	n.mu.Lock()
	delete(n.dark, a)
	n.mu.Unlock()
	n.wakeAll()
}

// Reset resets the connections of a node, as the death of a process does.
func (n *Network) Reset(a netip.Addr) {
	n.mu.Lock()
	var hit []*conn
	for c := range n.conns {
		if c.local.Addr() == a || c.remote.Addr() == a {
			hit = append(hit, c)
		}
	}
	n.mu.Unlock()
	for _, c := range hit {
		c.in.reset()
		c.out.reset()
	}
}

// Sent returns the bytes a node has sent since the network began, datagrams and
// streams.
func (n *Network) Sent(at netip.AddrPort) (packets, streams uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.ports[at]; ok {
		return p.packetBytes.Load(), p.streamBytes.Load()
	}
	return 0, 0
}

func (n *Network) wakeAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.in.wake()
	}
}

// apart reports whether nothing gets from one node to the other.
func (n *Network) apart(a, b netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.side[a] != n.side[b] || n.dark[a] || n.dark[b]
}

func (n *Network) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delayLocked()
}

func (n *Network) delayLocked() time.Duration {
	if n.Jitter <= 0 {
		return n.Latency
	}
	return n.Latency + time.Duration(n.rand.Int64N(int64(n.Jitter)))
}

// Open opens a port.
func (n *Network) Open(e gossip.Endpoint) (gossip.Port, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.ports[e.Bind]; ok {
		return nil, fmt.Errorf("listen on %s: %w", e.Bind, syscall.EADDRINUSE)
	}
	p := &port{net: n, name: e.Name, addr: e.Bind, packets: make(chan packet, 1024), streams: make(chan gossip.Stream, 128), done: make(chan struct{})}
	n.ports[e.Bind] = p
	return p, nil
}

type packet struct {
	b    []byte
	from netip.AddrPort
}

// port implements [gossip.Port].
type port struct {
	net     *Network
	name    string
	addr    netip.AddrPort
	packets chan packet
	streams chan gossip.Stream
	done    chan struct{}
	once    sync.Once

	packetBytes, streamBytes atomic.Uint64
}

func (p *port) Serve(handle func(gossip.Stream)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-p.done:
			return nil
		case s := <-p.streams:
			wg.Go(func() { handle(s) })
		}
	}
}

func (p *port) Dial(ctx context.Context, to netip.AddrPort, name, protocol string) (net.Conn, string, error) {
	timer := time.NewTimer(2 * p.net.delay())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	if p.net.apart(p.addr.Addr(), to.Addr()) {
		<-ctx.Done()
		return nil, "", &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	}
	p.net.mu.Lock()
	far, ok := p.net.ports[to]
	p.net.mu.Unlock()
	if !ok {
		return nil, "", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	if name != "" && name != far.name {
		return nil, "", fmt.Errorf("%s is %q, not %q", to, far.name, name)
	}
	near, theirs := p.net.pipe(p, far)
	peer := p.name
	if protocol == gossip.ProtocolJoin {
		peer = ""
	}
	select {
	case far.streams <- gossip.Stream{Conn: theirs, Peer: peer, Protocol: protocol}:
		return near, far.name, nil
	case <-far.done:
	case <-ctx.Done():
	}
	return nil, "", errors.Join(near.Close(), &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED})
}

func (p *port) ReadPacket(b []byte) (int, netip.AddrPort, error) {
	select {
	case k := <-p.packets:
		return copy(b, k.b), k.from, nil
	case <-p.done:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

// Lose sets the share of datagrams that get lost from now on.
func (n *Network) Lose(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

func (p *port) WritePacket(b []byte, to netip.AddrPort) error {
	n := p.net
	p.packetBytes.Add(uint64(len(b)))
	if n.apart(p.addr.Addr(), to.Addr()) {
		return nil
	}
	n.mu.Lock()
	lost := n.loss > 0 && n.rand.Float64() < n.loss
	delay := n.delayLocked()
	far, ok := n.ports[to]
	n.mu.Unlock()
	if lost || !ok {
		return nil
	}
	k := packet{b: append([]byte(nil), b...), from: p.addr}
	time.AfterFunc(delay, func() {
		select {
		case far.packets <- k:
		default: // as a full socket buffer does
		}
	})
	return nil
}

func (p *port) Refused() gossip.RefuseCounts { return gossip.RefuseCounts{} }

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.done)
		n := p.net
		n.mu.Lock()
		delete(n.ports, p.addr)
		var mine []*conn
		for c := range n.conns {
			if c.port == p {
				mine = append(mine, c)
			}
		}
		n.mu.Unlock()
		for _, c := range mine {
			_ = c.Close()
		}
	})
	return nil
}
