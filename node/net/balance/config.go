package balance

import (
	"errors"
	"log/slog"
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
)

// Config is what a [Proxier] is told.
type Config struct {
	NodeName string
	NodeIPs  []netip.Addr // this node's addresses among the nodes
	Overlay  []string     // devices of the pod network between nodes, which may be absent
	Homes    []Home
	Recorder events.EventRecorder
	// Speaks says whether this node is the one to record what all nodes see.
	Speaks func() bool
	Log    *slog.Logger
}

// Home is a Service that this daemon serves itself, as every other node's does:
// while it does, its clients on this node stay here, and when it is about to
// stop they are led to the others.
type Home struct {
	Service types.NamespacedName
	// Own is where this node serves; empty when the Service's endpoints on this
	// node tell.
	Own []netip.AddrPort
	// Serving says whether it serves from the start.
	Serving bool
}

func (c *Config) validate() error {
	switch {
	case c.NodeName == "":
		return errors.New("balance: no node name")
	case len(c.NodeIPs) == 0:
		return errors.New("balance: no node address")
	case c.Recorder == nil || c.Speaks == nil || c.Log == nil:
		return errors.New("balance: no recorder, Speaks or logger")
	}
	return nil
}
