package gossip_test

import (
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/simulate"
)

// narrow is a network on which so many bytes a second get out of each port, by
// streams.
type narrow struct {
	gossip.Network
	rate int
}

func (n *narrow) Open(e gossip.Endpoint) (gossip.Port, error) {
	p, err := n.Network.Open(e)
	return &narrowPort{Port: p, line: make(chan struct{}, 1), rate: n.rate}, err
}

type narrowPort struct {
	gossip.Port
	line chan struct{} // held while something is on it
	rate int
}

func (p *narrowPort) Serve(handle func(gossip.Stream)) error {
	return p.Port.Serve(func(s gossip.Stream) {
		s.Conn = &narrowConn{Conn: s.Conn, port: p}
		handle(s)
	})
}

type narrowConn struct {
	net.Conn
	port *narrowPort

	mu       sync.Mutex
	deadline time.Time
}

func (c *narrowConn) SetDeadline(t time.Time) error {
	c.setWritten(t)
	return c.Conn.SetDeadline(t)
}

func (c *narrowConn) SetWriteDeadline(t time.Time) error {
	c.setWritten(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *narrowConn) setWritten(t time.Time) {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
}

// Write writes packet by packet.
func (c *narrowConn) Write(b []byte) (int, error) {
	const packet = 1400
	for done := 0; done < len(b); {
		c.mu.Lock()
		late := !c.deadline.IsZero() && time.Now().After(c.deadline)
		c.mu.Unlock()
		if late {
			return done, os.ErrDeadlineExceeded
		}
		n := min(packet, len(b)-done)
		c.port.line <- struct{}{}
		simulate.Pass(time.Duration(n) * time.Second / time.Duration(c.port.rate))
		m, err := c.Conn.Write(b[done : done+n])
		<-c.port.line
		if done += m; err != nil {
			return done, err
		}
	}
	return len(b), nil
}

// TestNarrowLink: what takes longer to arrive than a peer may be silent does
// arrive, and whoever sends it is not held silent meanwhile.
func TestNarrowLink(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, c *simulate.Cluster) {
		c.Config = func(cfg *gossip.Config) { cfg.Network = &narrow{Network: c.Net, rate: 64 << 10} }
		start(t, c)
		a, b := c.Nodes[0], c.Nodes[1]
		simulate.Pass(5 * time.Second)
		for _, key := range []string{"/registry/a", "/registry/b"} {
			put(t, a, key, strings.Repeat("x", 1<<20))
		}
		put(t, a, "/registry/c", "small")
		suspected := 0
		took := await(t, 3*time.Minute, "two large values arrive", func() bool {
			if stateOf(b, a.Name) != gossip.StateAlive {
				suspected++
			}
			return equal(running(c))
		})
		t.Logf("2 MiB took %v", took)
		if suspected > 0 {
			t.Errorf("who sends them was suspected at %d looks", suspected)
		}
	})
}
