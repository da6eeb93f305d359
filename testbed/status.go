package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Power states of a node.
const (
	NodeOff    = "off"
	NodeOn     = "on"
	NodePaused = "paused"
)

// NodeStatus is one node as testbed sees it, from outside.
type NodeStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Power   string `json:"power"`
	Link    string `json:"link,omitempty"` // unplugged or bare, when it has no network
	// PID of the daemon on the machine, 0 when it does not run.
	PID     int       `json:"pid,omitempty"`
	Ready   bool      `json:"ready"`
	Text    string    `json:"text,omitempty"` // what the daemon says of itself
	Exit    string    `json:"exit,omitempty"` // how it ended
	Started time.Time `json:"started,omitzero"`
	Boots   int       `json:"boots"`
	InitPID int       `json:"initPID,omitempty"`
	Log     string    `json:"log"`
}

// Status is a cluster.
type Status struct {
	Dir        string       `json:"dir"`
	ID         string       `json:"id"`
	Nodes      []NodeStatus `json:"nodes"`
	Registries []Registry   `json:"registries,omitempty"`
	Cuts       [][2]string  `json:"cuts,omitempty"`
	OneWay     [][2]string  `json:"oneWayCuts,omitempty"` // the second does not hear the first
}

// Status looks at every node.
func (c *Cluster) Status(_ context.Context) (Status, error) {
	s, err := c.load()
	if err != nil {
		return Status{}, err
	}
	out := Status{Dir: c.cfg.Dir, ID: s.ID}
	for _, n := range s.Nodes {
		out.Nodes = append(out.Nodes, c.nodeStatus(n))
	}
	for _, p := range s.Cuts {
		if p.OneWay {
			out.OneWay = append(out.OneWay, [2]string{p.A, p.B})
			continue
		}
		out.Cuts = append(out.Cuts, [2]string{p.A, p.B})
	}
	out.Registries, err = c.Registries()
	return out, err
}

func (c *Cluster) nodeStatus(n *nodeState) NodeStatus {
	st := NodeStatus{Name: n.Name, Address: n.Addr.String(), Power: NodeOff, Link: string(n.Link), Boots: n.Boots, Log: c.daemonLog(n.Name)}
	if !n.Init.alive() {
		return st
	}
	st.InitPID = n.Init.PID
	if n.Paused {
		st.Power = NodePaused
		return st
	}
	st.Power = NodeOn
	d, err := ask(n.Init, request{Op: opStatus}, nil)
	if err != nil {
		st.Text = err.Error()
		return st
	}
	st.Ready, st.Text, st.Exit, st.Started = d.Ready, d.Text, d.Exit, d.Started
	if d.PID != 0 {
		if p, err := hostPID(n.Init, d.PID); err == nil {
			st.PID = p.PID
		}
	}
	return st
}

// Logs writes what the daemon of a node has printed, over all its starts;
// with follow it goes on until ctx is done.
func (c *Cluster) Logs(ctx context.Context, node string, w io.Writer, follow bool) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	if _, err := s.node(node); err != nil {
		return err
	}
	f, err := os.Open(c.daemonLog(node))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("logs: %s has not started yet", node)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(w, f); err != nil || !follow {
		return err
	}
	err = poll(ctx, 200*time.Millisecond, "follow log", func() (bool, error) {
		_, err := io.Copy(w, f)
		return false, err
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
