package caller

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Holder keeps connections open and asks over each of them in turn. One that
// breaks is a failure, and is made anew.
type Holder struct {
	cfg     Config
	tallies []*tally     // one for each connection
	age     atomic.Int64 // connections of another age are made anew
}

// NewHolder returns a holder of so many connections; it starts nothing. Of the
// configuration the bound of tries in flight has no meaning here.
func NewHolder(cfg Config, conns int) (*Holder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if conns < 1 || cfg.UDP {
		return nil, fmt.Errorf("caller: cannot hold %d connections, UDP: %t", conns, cfg.UDP)
	}
	h := &Holder{cfg: cfg}
	for range conns {
		h.tallies = append(h.tallies, newTally(cfg))
	}
	return h, nil
}

// Run holds the connections until ctx ends. What that breaks off is forgotten.
func (h *Holder) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, t := range h.tallies {
		all.Go(func() { h.hold(ctx, t) })
	}
	all.Wait()
	return nil
}

func (h *Holder) hold(ctx context.Context, tally *tally) {
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	var conn net.Conn
	var in *bufio.Reader
	var age int64
	shut := func() {
		if conn != nil {
			_ = conn.Close()
		}
		conn = nil
	}
	defer shut()
	for i := 0; h.cfg.Tries == 0 || i < h.cfg.Tries; i++ {
		if now := h.age.Load(); now != age {
			shut()
			age = now
		}
		t := tally.begin(time.Now())
		var answer Answer
		err := error(nil)
		if conn == nil {
			d := net.Dialer{Timeout: h.cfg.Timeout}
			if conn, err = d.DialContext(ctx, "tcp", h.cfg.Address); err == nil {
				in = bufio.NewReader(conn)
			}
		}
		if err == nil {
			answer, err = exchange(ctx, conn, in, h.cfg)
		}
		if err != nil {
			shut()
		}
		if err != nil && ctx.Err() != nil {
			tally.forget(t)
			return
		}
		tally.end(t, time.Now(), answer, err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func exchange(ctx context.Context, conn net.Conn, in *bufio.Reader, cfg Config) (a Answer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(cfg.Timeout)); err != nil {
		return a, err
	}
	if _, err := fmt.Fprintf(conn, "GET /who HTTP/1.1\r\nHost: %s\r\n\r\n", cfg.Address); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return a, err
	}
	return readAnswer(resp)
}

// Renew makes all connections anew, each before what is asked next over it.
func (h *Holder) Renew() { h.age.Add(1) }

// Peek reports on the window so far, over all connections.
func (h *Holder) Peek() Report { return h.report(false) }

// Take reports on the window and begins the next.
func (h *Holder) Take() Report { return h.report(true) }

func (h *Holder) report(next bool) Report {
	now := time.Now()
	out := h.tallies[0].report(now, next)
	for _, t := range h.tallies[1:] {
		out.add(t.report(now, next))
	}
	return out
}
