package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mootkube/moot/testbed/caller"
)

// The client that tests use takes what the server says, over TCP and UDP.
func TestWho(t *testing.T) {
	t.Setenv("POD", "web-0")
	t.Setenv("NODE", "n1")
	srv := httptest.NewUnstartedServer(newApp(0))
	srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, reached{}, c.LocalAddr())
	}
	srv.Start()
	defer srv.Close()
	datagrams, err := net.ListenPacket("udp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- answerDatagrams(datagrams) }()
	address := strings.TrimPrefix(srv.URL, "http://")
	_, port, _ := net.SplitHostPort(address)
	for _, udp := range []bool{false, true} {
		cfg := caller.DefaultConfig(address)
		cfg.UDP, cfg.Tries = udp, 3
		a, err := newAsker("ask", cfg, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := a.Peek(); r.Failures > 0 || r.Pods["web-0"] != 3 || r.Nodes["n1"] != 3 || r.Ports[port] != 3 || r.Clients["127.0.0.1"] != 3 {
			t.Errorf("UDP %t: %+v", udp, r)
		}
		// What a client tells is what the one who waits for it reads.
		var list []caller.Report
		w := httptest.NewRecorder()
		reports([]asker{a}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/take", nil))
		if err := json.NewDecoder(w.Body).Decode(&list); err != nil || len(list) != 1 || list[0].Tries != 3 || a.Peek().Tries != 0 {
			t.Errorf("taken: %+v, %v", list, err)
		}
	}
	if err := datagrams.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err == nil {
		t.Error("a closed socket was read")
	}
}
