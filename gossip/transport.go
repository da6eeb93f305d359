package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// labelByte begins a datagram of memberlist that carries a label.
const labelByte = 244

// maxPacket is the largest datagram there can be.
const maxPacket = 65535

// transport is memberlist's way to the port. It drops what does not begin with
// the cluster's label before memberlist sees it, and what memberlist is too
// busy to take. Until it is met, memberlist hears nothing: members may know this node
// from before it started, and would hear of a birth from it that is not settled.
type transport struct {
	port      Port
	advertise netip.AddrPort
	header    []byte // of each datagram
	packets   chan *memberlist.Packet
	streams   chan net.Conn
	ctx       context.Context // until Shutdown; memberlist knows no contexts
	close     func()
	met       atomic.Bool // a greeting was exchanged with a member
	foreign   atomic.Uint64
	dropped   atomic.Uint64
	refusals  limitedLog
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(ctx context.Context, port Port, advertise netip.AddrPort, label string, log *slog.Logger) *transport {
	t := &transport{
		port:      port,
		advertise: advertise,
		header:    append([]byte{labelByte, byte(len(label))}, label...),
		packets:   make(chan *memberlist.Packet, 256),
		streams:   make(chan net.Conn),
		refusals:  limitedLog{log: log},
	}
	t.ctx, t.close = context.WithCancel(ctx)
	return t
}

// receive takes datagrams from the port until it is closed.
func (t *transport) receive() error {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.port.ReadPacket(buf)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			select {
			case <-t.ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
			continue
		case !bytes.HasPrefix(buf[:n], t.header):
			t.foreign.Add(1)
			t.refusals.write(slog.LevelWarn, "datagram refused: not of this cluster", "from", from)
			continue
		case !t.met.Load():
			continue
		}
		p := &memberlist.Packet{Buf: bytes.Clone(buf[:n]), From: net.UDPAddrFromAddrPort(from), Timestamp: now}
		select {
		case t.packets <- p:
		default:
			t.dropped.Add(1) // as the network may
		}
	}
}

// hand gives an accepted stream to memberlist.
func (t *transport) hand(c net.Conn) {
	if !t.met.Load() {
		_ = c.Close()
		return
	}
	timeout := time.NewTimer(streamTimeout)
	defer timeout.Stop()
	select {
	case t.streams <- c:
	case <-t.ctx.Done():
		_ = c.Close()
	case <-timeout.C:
		_ = c.Close()
	}
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send datagram: %w", err)
	}
	return time.Now(), t.port.WritePacket(b, to)
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial member: %w", err)
	}
	ctx, cancel := context.WithTimeout(t.ctx, min(timeout, dialTimeout))
	defer cancel()
	c, _, err := t.port.Dial(ctx, to, a.Name, ProtocolGossip)
	return c, err
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// Shutdown stops handing over; the port belongs to the agent.
func (t *transport) Shutdown() error {
	t.close()
	return nil
}
