package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"

	"github.com/mootkube/moot/testbed/caller"
)

// reached is the key under which a request's context has the address that its
// connection came to.
type reached struct{}

func who(w http.ResponseWriter, r *http.Request) {
	at, _ := r.Context().Value(reached{}).(net.Addr)
	writeJSON(w, self(r.RemoteAddr, at))
}

// self is this server as the variables POD and NODE name it, or else its host.
func self(client string, at net.Addr) caller.Answer {
	a := caller.Answer{Pod: os.Getenv("POD"), Node: os.Getenv("NODE"), Client: client}
	if a.Pod == "" {
		a.Pod, _ = os.Hostname()
	}
	if at != nil {
		a.At = at.String()
	}
	return a
}

// answerDatagrams answers each until the socket is closed.
func answerDatagrams(conn net.PacketConn) error {
	b := make([]byte, 1500)
	for {
		_, from, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		out, err := json.Marshal(self(from.String(), conn.LocalAddr()))
		if err != nil {
			return err
		}
		_, _ = conn.WriteTo(out, from) // one that is lost is asked for again
	}
}
