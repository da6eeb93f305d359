package sched

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"
)

// Config is what a term of leadership is told. Start from [DefaultConfig].
type Config struct {
	Log *slog.Logger

	// Term tells this term from every other of the process: it must be
	// greater than that of the term before.
	Term uint64

	StateDir string         // holds this term's kubeconfigs; lost on reboot
	API      netip.AddrPort // where the node's own API server listens

	// Kubeconfigs of the identities used. Their server is not looked at.
	Controllers, Scheduler, Leader string

	CACert, CAKey     string         // root of the cluster; signs certificate requests
	ServiceAccountKey string         // signs service account tokens
	ClusterCIDRs      []netip.Prefix // of pods, one or one of each family; each node takes a part
	ServiceCIDRs      []netip.Prefix

	// NodeGrace is how long a node may be silent before it counts as gone.
	NodeGrace time.Duration

	// APIServers lists the addresses of all API servers that answer: those of
	// suspect and of restarting members are left out. It must be quick and safe
	// to call at any time. What it returns last when it is not empty becomes
	// the endpoints of default/kubernetes.
	APIServers func() []netip.AddrPort

	// Node is the name of this node; its Lease is its own kubelet's.
	Node string
	// Nodes lists all members, this node, the dead and the departed included.
	// It must be quick and safe to call at any time. Nil means that there is no
	// membership: then Leases alone decide, as upstream has it.
	Nodes func() []NodeHealth
	// Changed, when not nil, says that Nodes and APIServers are worth asking
	// again. It is for this term alone: a channel has one reader.
	Changed <-chan struct{}

	// The brake: when more than half of the members are gone at once, none of
	// them is evicted until enough are back or BrakeFor has passed. At once
	// means within BrakeWindow, or half a second a member if that is longer.
	BrakeFor, BrakeWindow time.Duration
	// StartupGrace is how long a member not heard of since this node started
	// is waited for.
	StartupGrace time.Duration

	// MaxPause is how long this process may stand still, stopped or starved,
	// before the term ends: others may have taken over meanwhile.
	MaxPause time.Duration

	// Report, when not nil, is told what the term does about nodes each time it
	// changes. It must be quick.
	Report func(Report)

	// The user's arguments, "flag=value" or "flag", for upstream's own flags.
	ControllerArgs, SchedulerArgs []string

	// Exits, when not nil, is where upstream's calls to end the process go.
	Exits *Exits

	// StopWithin bounds how long Run waits for controllers after the gate is
	// cut; what has not returned by then is left behind, cut off.
	StopWithin time.Duration
}

// DefaultConfig returns the settings that do not depend on the node.
func DefaultConfig() Config {
	return Config{
		Log:          slog.New(slog.DiscardHandler),
		API:          netip.MustParseAddrPort("127.0.0.1:6443"),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		NodeGrace:    30 * time.Second,
		BrakeFor:     5 * time.Minute,
		BrakeWindow:  5 * time.Second,
		StartupGrace: time.Minute,
		MaxPause:     5 * time.Second,
		StopWithin:   5 * time.Second,
	}
}

// Validate says what is wrong, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Log == nil {
		add("no logger")
	}
	if c.Term == 0 || c.Term > maxTerm {
		add("term %d: must be between 1 and %d", c.Term, uint64(maxTerm))
	}
	if !c.API.IsValid() {
		add("address of the API server: missing")
	}
	for name, path := range map[string]string{
		"state directory": c.StateDir, "kubeconfig of the controllers": c.Controllers,
		"kubeconfig of the scheduler": c.Scheduler, "kubeconfig of the leader": c.Leader,
		"CA certificate": c.CACert, "CA key": c.CAKey, "service account key": c.ServiceAccountKey,
	} {
		if !filepath.IsAbs(path) {
			add("%s %q: must be an absolute path", name, path)
		}
	}
	if len(c.ClusterCIDRs) == 0 || len(c.ServiceCIDRs) == 0 {
		add("cluster and service networks: missing")
	}
	if c.NodeGrace < 2*nodeCheckPeriod {
		add("grace of a silent node %s: must be at least %s", c.NodeGrace, 2*nodeCheckPeriod)
	}
	if c.Nodes != nil && c.Node == "" {
		add("name of this node: missing")
	}
	if c.BrakeFor < 0 || c.BrakeWindow <= 0 || c.StartupGrace < 0 {
		add("brake of %s within %s, startup grace %s: must be positive", c.BrakeFor, c.BrakeWindow, c.StartupGrace)
	}
	if c.MaxPause <= 0 || c.MaxPause >= c.NodeGrace {
		add("longest pause %s: must be positive and less than the grace of a silent node, %s", c.MaxPause, c.NodeGrace)
	}
	if c.APIServers == nil {
		add("list of API servers: missing")
	}
	if c.StopWithin <= 0 {
		add("bound on stopping %s: must be positive", c.StopWithin)
	}
	return errors.Join(errs...)
}
