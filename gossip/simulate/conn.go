package simulate

import (
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// pipeBytes is what a stream holds in each direction before its writer waits.
const pipeBytes = 256 << 10

// pipe makes a connection between two ports.
func (n *Network) pipe(a, b *port) (*conn, *conn) {
	ab, ba := newHalf(), newHalf()
	near := &conn{net: n, port: a, local: a.addr, remote: b.addr, in: ba, out: ab}
	far := &conn{net: n, port: b, local: b.addr, remote: a.addr, in: ab, out: ba}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near] = struct{}{}
	n.conns[far] = struct{}{}
	return near, far
}

// half is one direction of a connection.
type half struct {
	mu      sync.Mutex
	chunks  []chunk
	bytes   int
	ended   bool // the writer closed
	gone    bool // the reader closed
	broken  bool
	changed chan struct{} // closed and replaced whenever something changes
}

type chunk struct {
	at time.Time // when it arrives
	b  []byte
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) wake() {
	h.mu.Lock()
	h.wakeLocked()
	h.mu.Unlock()
}

func (h *half) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) reset() {
	h.mu.Lock()
	h.broken = true
	h.wakeLocked()
	h.mu.Unlock()
}

// conn is one end of a connection.
type conn struct {
	net           *Network
	port          *port
	local, remote netip.AddrPort
	in, out       *half

	mu            sync.Mutex
	read, written time.Time // deadlines
	closed        bool
}

func (c *conn) deadline(write bool) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if write {
		return c.written
	}
	return c.read
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// wait waits until the half changes, until at, or until the deadline; zero
// times are never.
func wait(changed <-chan struct{}, at, deadline time.Time) {
	if at.IsZero() || !deadline.IsZero() && deadline.Before(at) {
		at = deadline
	}
	if at.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func (c *conn) Read(b []byte) (int, error) {
	h := c.in
	for {
		deadline := c.deadline(false)
		if c.isClosed() {
			return 0, net.ErrClosed
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		apart := c.net.apart(c.local.Addr(), c.remote.Addr())
		h.mu.Lock()
		switch {
		case h.broken:
			h.mu.Unlock()
			return 0, syscall.ECONNRESET
		case apart:
		case len(h.chunks) > 0 && !time.Now().Before(h.chunks[0].at):
			n := copy(b, h.chunks[0].b)
			if h.chunks[0].b = h.chunks[0].b[n:]; len(h.chunks[0].b) == 0 {
				h.chunks = slices.Delete(h.chunks, 0, 1)
			}
			h.bytes -= n
			h.wakeLocked()
			h.mu.Unlock()
			return n, nil
		case len(h.chunks) == 0 && h.ended:
			h.mu.Unlock()
			return 0, io.EOF
		}
		var at time.Time
		if !apart && len(h.chunks) > 0 {
			at = h.chunks[0].at
		}
		changed := h.changed
		h.mu.Unlock()
		wait(changed, at, deadline)
	}
}

func (c *conn) Write(b []byte) (int, error) {
	h := c.out
	for {
		deadline := c.deadline(true)
		if c.isClosed() {
			return 0, net.ErrClosed
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		delay := c.net.delay()
		h.mu.Lock()
		switch {
		case h.broken:
			h.mu.Unlock()
			return 0, syscall.ECONNRESET
		case h.gone:
			h.mu.Unlock()
			return 0, syscall.EPIPE
		case h.bytes == 0 || h.bytes+len(b) <= pipeBytes:
			at := time.Now().Add(delay)
			if k := len(h.chunks); k > 0 && at.Before(h.chunks[k-1].at) {
				at = h.chunks[k-1].at
			}
			h.chunks = append(h.chunks, chunk{at: at, b: append([]byte(nil), b...)})
			h.bytes += len(b)
			h.wakeLocked()
			h.mu.Unlock()
			c.port.streamBytes.Add(uint64(len(b)))
			return len(b), nil
		}
		changed := h.changed
		h.mu.Unlock()
		wait(changed, time.Time{}, deadline)
	}
}

func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.net.mu.Lock()
	delete(c.net.conns, c)
	dark := c.net.dark[c.local.Addr()]
	c.net.mu.Unlock()
	c.out.mu.Lock()
	c.out.ended = c.out.ended || !dark
	c.out.wakeLocked()
	c.out.mu.Unlock()
	c.in.mu.Lock()
	c.in.gone = c.in.gone || !dark
	c.in.wakeLocked()
	c.in.mu.Unlock()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.read, c.written = t, t
	c.mu.Unlock()
	c.in.wake()
	c.out.wake()
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.read = t
	c.mu.Unlock()
	c.in.wake()
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.written = t
	c.mu.Unlock()
	c.out.wake()
	return nil
}
