package sched

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxTerm     = 1<<22 - 1 // as many loopback addresses as [gateAddr] has
	dialTimeout = 5 * time.Second
	acceptPause = 50 * time.Millisecond
)

// gateAddr is the loopback address that belongs to a term: between 127.64.0.1
// and 127.127.255.255. No two terms of a process share one, so that a client
// of an old term never reaches the gate of a later one.
func gateAddr(term uint64) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 64 | byte(term>>16), byte(term >> 8), byte(term)})
}

// gate forwards connections to the API server until it is cut. It does not
// look into them: they are TLS from end to end.
//
// It shuts by itself when this process stood still for too long, before
// anything that wakes up with it gets through: others may lead by now.
type gate struct {
	listener net.Listener
	target   string
	pulse    *pulse
	wait     sync.WaitGroup

	mu    sync.Mutex
	isCut bool                  // set once, and conns stays empty from then on
	conns map[*net.TCPConn]bool // both ends of each forwarded connection
}

// openGate listens at the term's address and forwards to target until cut, or
// until p misses a beat.
func openGate(ctx context.Context, term uint64, target netip.AddrPort, p *pulse) (*gate, error) {
	addr := netip.AddrPortFrom(gateAddr(term), 0)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", addr.String())
	if err != nil {
		return nil, fmt.Errorf("open gate of term %d: %w", term, err)
	}
	g := &gate{listener: listener, target: target.String(), pulse: p, conns: map[*net.TCPConn]bool{}}
	g.wait.Go(g.accept)
	return g, nil
}

// url is where clients of the term reach the API server.
func (g *gate) url() string { return "https://" + g.listener.Addr().String() }

func (g *gate) accept() {
	for {
		conn, err := g.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // the client gave up, or files ran out: it tries again
			<-time.After(acceptPause)
			continue
		}
		if client := conn.(*net.TCPConn); g.add(client) {
			g.wait.Go(func() { g.forward(client) })
		}
	}
}

// forward joins client with a new connection to the API server.
func (g *gate) forward(client *net.TCPConn) {
	defer g.drop(client)
	conn, err := net.DialTimeout("tcp", g.target, dialTimeout)
	if err != nil {
		return // the client sees its connection closed and tries again
	}
	server := conn.(*net.TCPConn)
	if !g.add(server) {
		return
	}
	defer g.drop(server)
	var back sync.WaitGroup
	back.Go(func() { relay(client, server, server) })
	relay(server, client, whileBeating{client, g.pulse})
	back.Wait()
}

// whileBeating reads from a connection, unless the pulse has stopped meanwhile.
type whileBeating struct {
	conn  *net.TCPConn
	pulse *pulse
}

func (r whileBeating) Read(p []byte) (int, error) {
	n, err := r.conn.Read(p)
	if !r.pulse.beats() {
		return 0, ErrStoodStill
	}
	return n, err
}

// relay copies what data gives from one connection to the other until either
// closes, and passes the end on.
func relay(to, from *net.TCPConn, data io.Reader) {
	if _, err := io.Copy(to, data); err != nil {
		// Nothing in flight survives: also end the other direction.
		reset(to)
		reset(from)
		return
	}
	_ = to.CloseWrite() // an error means that it is closed already
}

// add registers conn, or resets it when the gate is cut.
func (g *gate) add(conn *net.TCPConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isCut || !g.pulse.beats() {
		reset(conn)
		return false
	}
	g.conns[conn] = true
	return true
}

func (g *gate) drop(conn *net.TCPConn) {
	g.mu.Lock()
	delete(g.conns, conn)
	g.mu.Unlock()
	_ = conn.Close()
}

// cut resets every connection and lets no new one through, for ever. When it
// returns, nothing more of the term is on its way to the API server.
func (g *gate) cut() {
	g.shut()
	g.wait.Wait()
}

// shut is cut without waiting for what is under way to notice.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isCut = true
	_ = g.listener.Close() // closed twice at worst
	for conn := range g.conns {
		reset(conn)
	}
	clear(g.conns)
}

// reset closes conn and drops what was not sent yet.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // fails only on a closed connection
	_ = conn.Close()
}
