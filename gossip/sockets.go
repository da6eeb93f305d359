package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the port.
const (
	handshakeTime      = 5 * time.Second
	handshakesEach     = 16 // under way at once from one address
	handshakesStranger = 64 // under way at once from all addresses that are no member's
	packetBuffer       = 1 << 20
)

// sockets is the [Network] of the real world.
type sockets struct{}

// Sockets returns the network that an agent uses when its configuration names
// none.
func Sockets() Network { return sockets{} }

// Open listens on TCP and UDP.
func (sockets) Open(e Endpoint) (Port, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(e.Bind))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e.Bind, err)
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(e.Bind))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", e.Bind, err), tcp.Close())
	}
	if err := udp.SetReadBuffer(packetBuffer); err != nil {
		e.Log.Debug("receive buffer stays small", "err", err)
	}
	return &socketPort{
		Endpoint: e, tcp: tcp, udp: udp, server: serverTLS(e.Identity),
		handshakes: places[netip.Addr]{each: handshakesEach, strangers: handshakesStranger},
		refusals:   limitedLog{log: e.Log},
		conns:      make(map[net.Conn]struct{}),
		done:       make(chan struct{}),
	}, nil
}

// socketPort is one TCP and one UDP socket.
type socketPort struct {
	Endpoint
	tcp        *net.TCPListener
	udp        *net.UDPConn
	server     *tls.Config
	handshakes places[netip.Addr]
	refusals   limitedLog
	strangers  atomic.Uint64
	busy       atomic.Uint64
	done       chan struct{} // closed by Close

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // open, of both directions
	closed bool
}

func (p *socketPort) Serve(handle func(Stream)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		raw, err := p.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Out of descriptors, or the like: it passes, or the daemon is
			// beyond help anyway.
			p.refusals.write(slog.LevelError, "accept failed", "err", err)
			if !p.pause() {
				return nil
			}
			continue
		}
		from := raw.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		release, ok := p.handshakes.take(from, p.Known(from))
		if !ok {
			p.busy.Add(1)
			p.refusals.write(slog.LevelWarn, "connection refused: too many handshakes under way", "from", from)
			_ = raw.Close()
			continue
		}
		wg.Go(func() {
			defer release()
			s, err := p.accept(raw)
			release()
			if err != nil {
				p.strangers.Add(1)
				p.refusals.write(slog.LevelWarn, "connection refused", "from", from, "err", err)
				_ = raw.Close()
				return
			}
			handle(s)
		})
	}
}

// pause waits a little, and reports false when the port closes meanwhile.
func (p *socketPort) pause() bool {
	select {
	case <-p.done:
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// accept shakes hands.
func (p *socketPort) accept(raw net.Conn) (Stream, error) {
	conn, err := p.track(raw)
	if err != nil {
		return Stream{}, err
	}
	config, asked := p.server.Clone(), ""
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 {
			asked = hello.SupportedProtos[0]
		}
		return p.server.GetConfigForClient(hello)
	}
	c := tls.Server(conn, config)
	if err := handshake(context.Background(), c); err != nil {
		_ = conn.Close()
		return Stream{}, explain(err, asked)
	}
	s := Stream{Conn: gathering{c, conn}, Protocol: c.ConnectionState().NegotiatedProtocol}
	if s.Protocol != ProtocolJoin {
		s.Peer = peerName(c.ConnectionState())
	}
	return s, nil
}

// errForeignToken is what it means when a machine that asks to join hangs up on
// seeing this node's certificate.
var errForeignToken = errors.New("a machine that wants to join has a token of another cluster, or one made before the keys were rotated; moot token create makes one")

// explain says what a failed handshake by a protocol is about.
func explain(err error, protocol string) error {
	alert, ok := errors.AsType[*net.OpError](err)
	if ok && alert.Op == remoteAlert && protocol == ProtocolJoin {
		return fmt.Errorf("%w: %w", errForeignToken, err)
	}
	return err
}

// remoteAlert is the operation that crypto/tls names when the other end ended
// the handshake.
const remoteAlert = "remote error"

func handshake(ctx context.Context, c *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("shake hands: %w", err)
	}
	return nil
}

func (p *socketPort) Dial(ctx context.Context, to netip.AddrPort, name, protocol string) (net.Conn, string, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}}
	if from := p.Bind.Addr(); !from.IsUnspecified() && from.IsLoopback() == to.Addr().IsLoopback() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	raw, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, "", err
	}
	conn, err := p.track(raw)
	if err != nil {
		return nil, "", err
	}
	cfg, err := clientTLS(p.Identity, name, protocol)
	if err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	c := tls.Client(conn, cfg)
	if err := handshake(ctx, c); err != nil {
		_ = conn.Close()
		return nil, "", err
	}
	return gathering{c, conn}, peerName(c.ConnectionState()), nil
}

func (p *socketPort) ReadPacket(b []byte) (int, netip.AddrPort, error) {
	n, from, err := p.udp.ReadFromUDPAddrPort(b)
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

func (p *socketPort) WritePacket(b []byte, to netip.AddrPort) error {
	_, err := p.udp.WriteToUDPAddrPort(b, to)
	return err
}

func (p *socketPort) Refused() RefuseCounts {
	return RefuseCounts{Strangers: p.strangers.Load(), Busy: p.busy.Load()}
}

// Close closes the sockets and all connections.
func (p *socketPort) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.done)
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	err := errors.Join(p.tcp.Close(), p.udp.Close())
	for _, c := range conns {
		_ = c.Close()
	}
	return err
}

// track remembers an open connection, so that Close can close it.
func (p *socketPort) track(c net.Conn) (*trackedConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	t := &trackedConn{Conn: c, port: p}
	p.conns[t] = struct{}{}
	return t, nil
}

type trackedConn struct {
	net.Conn
	port *socketPort

	flushing atomic.Bool // what was gathered is on its way to the kernel
	mu       sync.Mutex
	gathers  int // calls of gathering.Write under way
	gathered *[]byte
}

// gatherBytes is how much goes to the kernel at once.
const gatherBytes = 128 << 10

var gatherBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, gatherBytes+joinedBytes)) }}

// gathering hands much that is written to the kernel at once. TLS alone would do
// so in records of 16 KiB, each a system call and a wake of the reader.
type gathering struct {
	*tls.Conn
	under *trackedConn
}

func (g gathering) Write(b []byte) (int, error) {
	if len(b) <= joinedBytes {
		return g.Conn.Write(b)
	}
	g.under.hold()
	n, err := g.Conn.Write(b)
	return n, errors.Join(err, g.under.release())
}

// hold begins to hold back what is written.
func (c *trackedConn) hold() {
	c.mu.Lock()
	c.gathers++
	c.mu.Unlock()
}

// release lets go of what is held back, unless another holds it as well.
func (c *trackedConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gathers--; c.gathers > 0 || c.gathered == nil {
		return nil
	}
	err := c.flushLocked()
	gatherBuffers.Put(c.gathered)
	c.gathered = nil
	return err
}

// Close closes the connection, at once when the peer does not take what is being
// written: TLS would wait to tell it.
func (g gathering) Close() error {
	if g.under.flushing.Load() {
		return g.under.Close()
	}
	return g.Conn.Close()
}

func (c *trackedConn) flushLocked() error {
	c.flushing.Store(true)
	defer c.flushing.Store(false)
	_, err := c.Conn.Write(*c.gathered)
	*c.gathered = (*c.gathered)[:0]
	return err
}

func (c *trackedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.gathers == 0 {
		c.mu.Unlock()
		return c.Conn.Write(b)
	}
	defer c.mu.Unlock()
	if c.gathered == nil {
		c.gathered = gatherBuffers.Get().(*[]byte)
	}
	*c.gathered = append(*c.gathered, b...)
	if len(*c.gathered) < gatherBytes {
		return len(b), nil
	}
	return len(b), c.flushLocked()
}

func (c *trackedConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.conns, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}
