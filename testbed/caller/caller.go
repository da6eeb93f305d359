// Package caller asks a server again and again, as clients of a Service do, and
// tells what came of it: who answered, what failed, and for how long there was
// trouble.
//
// A [Caller] makes a fresh connection for each try and begins one by the clock,
// whatever has become of those before. A [Holder] keeps connections open and
// exchanges something over each. Both note every try in a tally; a report is a
// pure function of the tries of one window of time.
//
// Goroutines end with the Run that started them. What is asked answers with an
// [Answer] as JSON: over HTTP at /who, over UDP to any datagram.
package caller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Answer is what a server tells of itself and of who asks.
type Answer struct {
	Pod    string `json:"pod"`
	Node   string `json:"node"`
	Client string `json:"client"` // the asker's address and port, as the server sees it
	At     string `json:"at"`     // where the server was reached; of UDP only the port is told
}

// Config says whom to ask, and how.
type Config struct {
	// Address is host and port.
	Address string
	// UDP asks with a datagram instead of over HTTP.
	UDP bool
	// Every is the time between the starts of two tries.
	Every time.Duration
	// Timeout bounds a try.
	Timeout time.Duration
	// Slow is when a try that succeeds counts as troubled.
	Slow time.Duration
	// Flight bounds how many tries go on at once; at the bound none is begun.
	Flight int
	// Tries ends it after so many. 0: no end.
	Tries int
	// From is the port to ask from over HTTP, for one try at a time. 0: any.
	From int
}

// DefaultConfig asks a hundred times a second. A lost segment, which is sent
// again after a second, shows as a slow try.
func DefaultConfig(address string) Config {
	return Config{
		Address: address, Every: 10 * time.Millisecond, Timeout: 3 * time.Second,
		Slow: 900 * time.Millisecond, Flight: 1000,
	}
}

// Validate reports the first thing wrong with c.
func (c Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("caller: %w", err)
	}
	if c.From < 0 || c.From > 65535 || c.From > 0 && c.UDP {
		return fmt.Errorf("caller: cannot ask from port %d, UDP: %t", c.From, c.UDP)
	}
	if c.Every <= 0 || c.Timeout <= 0 || c.Slow <= 0 || c.Flight <= 0 || c.Tries < 0 {
		return errors.New("caller: times and bounds have to be above zero")
	}
	return nil
}

// Caller asks over a fresh connection each time.
type Caller struct {
	cfg    Config
	tally  *tally
	client *http.Client
}

// New returns a caller; it starts nothing.
func New(cfg Config) (*Caller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := net.Dialer{}
	if cfg.From > 0 {
		d = net.Dialer{LocalAddr: &net.TCPAddr{Port: cfg.From}, Control: again}
	}
	return &Caller{cfg: cfg, tally: newTally(cfg), client: &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.DialContext},
	}}, nil
}

// again lets a port be used though a connection from it has ended just now.
func again(_, _ string, raw syscall.RawConn) error {
	var err error
	if ctlErr := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}); ctlErr != nil {
		return ctlErr
	}
	return err
}

// Run asks until ctx ends or all tries are made, and returns when each has come
// to an end. One that ctx has ended is forgotten.
func (c *Caller) Run(ctx context.Context) error {
	var flying sync.WaitGroup
	defer flying.Wait()
	places := make(chan struct{}, c.cfg.Flight)
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for i := 0; c.cfg.Tries == 0 || i < c.cfg.Tries; i++ {
		select {
		case places <- struct{}{}:
			t := c.tally.begin(time.Now())
			flying.Go(func() {
				defer func() { <-places }()
				c.try(ctx, t)
			})
		default:
			c.tally.miss()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (c *Caller) try(ctx context.Context, t *try) {
	one, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	ask := c.overHTTP
	if c.cfg.UDP {
		ask = c.overUDP
	}
	answer, err := ask(one)
	if ctx.Err() != nil && err != nil {
		c.tally.forget(t)
		return
	}
	c.tally.end(t, time.Now(), answer, err)
}

func (c *Caller) overHTTP(ctx context.Context) (a Answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.cfg.Address+"/who", nil)
	if err != nil {
		return a, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return a, err
	}
	return readAnswer(resp)
}

func (c *Caller) overUDP(ctx context.Context) (a Answer, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", c.cfg.Address)
	if err != nil {
		return a, err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return a, err
	}
	if _, err := conn.Write([]byte("who")); err != nil {
		return a, err
	}
	b := make([]byte, maxAnswer)
	n, err := conn.Read(b)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(b[:n], &a)
}

// maxAnswer bounds what is read.
const maxAnswer = 4 << 10

func readAnswer(resp *http.Response) (a Answer, err error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(b, &a)
}

// Peek reports on the window so far.
func (c *Caller) Peek() Report { return c.tally.report(time.Now(), false) }

// Take reports on the window and begins the next. Tries that go on are part of
// that.
func (c *Caller) Take() Report { return c.tally.report(time.Now(), true) }
