package caller

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// script makes tries of text: each letter is one begun 10 ms after the last. A
// dot succeeds in 1 ms, an s in 950 ms, an x fails after 500 ms, a w goes on.
func script(text string) (tries []*try, since, now time.Time) {
	since = time.Unix(1000, 0)
	for i, c := range text {
		t := &try{began: since.Add(time.Duration(i) * 10 * time.Millisecond)}
		switch c {
		case '.':
			t.ended = t.began.Add(time.Millisecond)
		case 's':
			t.ended = t.began.Add(950 * time.Millisecond)
		case 'x':
			t.ended, t.err = t.began.Add(500*time.Millisecond), "timeout"
		}
		tries = append(tries, t)
	}
	return tries, since, since.Add(time.Minute)
}

func TestSummarize(t *testing.T) {
	quiet := strings.Repeat(".", 150)
	for _, c := range []struct {
		tries                string
		gap, spell           int // ms
		failures, slow, open int
	}{
		{"", 0, 0, 0, 0, 0},
		{"....", 1, 0, 0, 0, 0},
		{".x.", 11, 11, 1, 0, 0},
		{".xxx.", 31, 31, 3, 0, 0},
		// Others succeed between them: a spell, but no gap.
		{".x.x.x.", 11, 51, 3, 0, 0},
		// A slow one is trouble until one begun later succeeds.
		{".s.", 11, 11, 0, 1, 0},
		{".s", 950, 59990, 0, 1, 0},
		{"s", 950, 60000, 0, 1, 0},
		{"x" + quiet + "xx.", 21, 21, 3, 0, 0},
		{"xx" + quiet + "x.", 21, 21, 3, 0, 0},
		{".xx", 59990, 59990, 2, 0, 0},
		{".w.", 1, 0, 0, 0, 1},
		{".xw.", 21, 21, 1, 0, 1},
	} {
		tries, since, now := script(c.tries)
		r := summarize(tries, since, now, 900*time.Millisecond)
		if int(r.Gap.Milliseconds()) != c.gap || int(r.Spell.Milliseconds()) != c.spell ||
			r.Failures != c.failures || r.Slow != c.slow || r.Open != c.open || r.Tries != len(c.tries)-c.open {
			t.Errorf("%.20s: gap %s spell %s %d failures %d slow %d open, want %+v", c.tries, r.Gap, r.Spell, r.Failures, r.Slow, r.Open, c)
		}
	}
	tries, since, now := script("..x..")
	if r := summarize(tries, since, now, time.Second); r.Hung != 500*time.Millisecond || r.Stall != 10*time.Millisecond {
		t.Errorf("hung %s, stood still %s", r.Hung, r.Stall)
	}
	if r := summarize(tries, since, now, time.Second); r.Calm != time.Minute-20*time.Millisecond || len(r.Failed) != 1 || r.Failed[0] != 20*time.Millisecond {
		t.Errorf("calm %s, failed at %v", r.Calm, r.Failed)
	}
}

// What hangs does not stop the clock, and goes into the next window.
func TestCallerGoesOn(t *testing.T) {
	hang := make(chan struct{})
	var first sync.Once
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hung := false
		first.Do(func() { hung = true })
		if hung {
			<-hang
		}
		_ = json.NewEncoder(w).Encode(Answer{Pod: "p", Client: r.RemoteAddr, At: r.Host})
	}))
	defer srv.Close()
	cfg := DefaultConfig(strings.TrimPrefix(srv.URL, "http://"))
	cfg.Every, cfg.Timeout = time.Millisecond, time.Minute
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	await(t, func() bool { return c.Peek().Tries >= 20 })
	if r := c.Take(); r.Failures != 0 || r.Open == 0 || r.Pods["p"] != r.Tries || r.Clients["127.0.0.1"] != r.Tries {
		t.Errorf("%+v", r)
	}
	close(hang)
	await(t, func() bool { return c.Peek().Longest > c.Peek().Window })
	srv.CloseClientConnections()
	_ = srv.Listener.Close() // from here on it refuses
	await(t, func() bool { return c.Peek().Errors["connection refused"] > 3 })
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestCallerOverUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := conn.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			out, _ := json.Marshal(Answer{Pod: "p", Client: from.String()})
			_, _ = conn.WriteTo(out, from)
		}
	}()
	cfg := DefaultConfig(conn.LocalAddr().String())
	cfg.UDP, cfg.Tries, cfg.Every = true, 5, time.Millisecond
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := c.Take(); r.Tries != 5 || r.Pods["p"] != 5 {
		t.Errorf("%+v", r)
	}
}

// A connection that breaks is told, and made anew.
func TestHolder(t *testing.T) {
	var made atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(Answer{Pod: "p", Client: r.RemoteAddr, At: r.Host})
	}))
	srv.Config.ConnState = func(_ net.Conn, now http.ConnState) {
		if now == http.StateNew {
			made.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	cfg := DefaultConfig(strings.TrimPrefix(srv.URL, "http://"))
	cfg.Every = time.Millisecond
	h, err := NewHolder(cfg, 3)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	await(t, func() bool { return h.Peek().Tries >= 30 })
	if r := h.Take(); r.Failures != 0 || r.Pods["p"] != r.Tries {
		t.Errorf("%+v", r)
	}
	srv.CloseClientConnections()
	await(t, func() bool { return h.Peek().Failures == 3 })
	await(t, func() bool { return h.Peek().Tries >= 30 })
	if r := h.Take(); r.Failures != 3 {
		t.Errorf("%+v", r)
	}
	was := made.Load()
	h.Renew()
	await(t, func() bool { return made.Load() == was+3 })
	if r := h.Take(); r.Failures != 0 {
		t.Errorf("%+v", r)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not come")
		}
	}
}
