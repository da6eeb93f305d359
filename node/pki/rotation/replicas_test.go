package rotation

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/node/pki"
)

const membersPrefix = "/moot/members/"

// replicas is a cluster whose members each have a store of their own: what one
// has reaches another when the test says so.
type replicas struct {
	t        testing.TB
	members  map[string]*member
	machines int // that there were
}

type member struct {
	name, machine, dir string
	view               *view
	runner             *Runner // nil before the first start
	id                 *pki.PeerIdentity
	leads              bool
	listed             func() // called when the register has been read, if set
}

func newReplicas(t testing.TB, names ...string) *replicas {
	t.Helper()
	c := &replicas{t: t, members: map[string]*member{}}
	first := c.machine(names[0], nil)
	first.view, first.leads = newView(first.machine), true
	first.view.put(membersPrefix+first.name, []byte(first.machine))
	c.run(first)
	for _, name := range names[1:] {
		c.admit(name, names[0])
		c.begin(name, names[0])
	}
	c.sync()
	return c
}

// machine is a new one, with a cluster's keys, or its own.
func (c *replicas) machine(name string, keys *pki.Material) *member {
	c.t.Helper()
	c.machines++
	m := &member{name: name, machine: fmt.Sprintf("machine %d", c.machines), dir: c.t.TempDir()}
	if keys != nil {
		if err := pki.Import(m.dir, *keys); err != nil {
			c.t.Fatal(err)
		}
	}
	bundle, err := pki.Ensure(m.dir, pki.Params{
		NodeName: name, NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), ClusterDomain: "cluster.local", APIPort: 6443,
	}, testTime())
	if err != nil {
		c.t.Fatal(err)
	}
	if m.id, err = bundle.PeerIdentity(); err != nil {
		c.t.Fatal(err)
	}
	c.members[name] = m
	return m
}

// admit lets a new machine in as node/join does: it is registered before the keys
// are read that it is given. It does not run yet.
func (c *replicas) admit(name, by string) {
	c.t.Helper()
	via := c.members[by]
	via.view.put(membersPrefix+name, fmt.Appendf(nil, "machine %d", c.machines+1))
	keys, err := pki.Export(via.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	c.machine(name, &keys)
}

// begin starts a machine that was let in, with a copy of another's replica.
func (c *replicas) begin(name, from string) {
	c.t.Helper()
	m := c.members[name]
	m.view = copyOf(m.machine, c.members[from].view)
	m.view.put(membersPrefix+name, []byte(m.machine)) // as its start does, whatever it finds
	c.run(m)
}

func (c *replicas) run(m *member) {
	c.t.Helper()
	var err error
	if m.runner, err = New(Config{
		Name: m.name, Machine: m.machine, Dir: m.dir, Store: m.view,
		Members: func(context.Context) (map[string]string, error) {
			machines := map[string]string{}
			for key, c := range m.view.under(membersPrefix, membersPrefix+"~") {
				machines[strings.TrimPrefix(key, membersPrefix)] = string(c.value)
			}
			if m.listed != nil {
				m.listed()
			}
			return machines, nil
		},
		Leads: func() bool { return m.leads }, Taken: func() error { return nil },
		Now: testTime, Log: slog.New(slog.DiscardHandler), Every: time.Second,
	}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *replicas) rotate(name string) {
	c.t.Helper()
	if _, err := c.members[name].runner.Start(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *replicas) step(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if err := c.members[name].runner.step(c.t.Context()); err != nil {
			c.t.Fatalf("%s: %v", name, err)
		}
	}
}

// pull brings a member all that another has.
func (c *replicas) pull(name, from string) {
	other := c.members[from].view
	c.members[name].view.pull(other, len(other.changes))
}

// running names the members that run.
func (c *replicas) running() []string {
	names := slices.Sorted(maps.Keys(c.members))
	return slices.DeleteFunc(names, func(name string) bool { return c.members[name].runner == nil })
}

// sync brings every member that runs all that the others have.
func (c *replicas) sync() {
	for _, name := range c.running() {
		for _, from := range c.running() {
			c.pull(name, from)
		}
	}
}

// reach takes the running members to a stage, and each through it.
func (c *replicas) reach(stage Stage) {
	c.t.Helper()
	for range 20 {
		c.sync()
		if s := c.status(c.running()[0]); s.Stage == stage && len(s.Waiting) == 0 {
			return
		}
		for _, name := range c.running() {
			if s := c.status(name); s.Stage.order() < stage.order() || slices.Contains(s.Waiting, name) {
				c.step(name)
			}
		}
	}
	c.t.Fatalf("stage %s is not reached: %+v", stage, c.status(c.running()[0]))
}

func (c *replicas) status(name string) Status {
	c.t.Helper()
	s, err := c.members[name].runner.Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// wantWhole checks that nobody who was let in is locked out.
func (c *replicas) wantWhole() {
	c.t.Helper()
	ids := map[string]*pki.PeerIdentity{}
	for name, m := range c.members {
		ids[name] = m.id
	}
	wantWhole(c.t, ids)
}

// wantNewKeysAlone checks that nobody accepts what was replaced.
func (c *replicas) wantNewKeysAlone() {
	c.t.Helper()
	pins := map[string]bool{}
	for name, m := range c.members {
		pin, err := m.id.Pin()
		if err != nil {
			c.t.Fatal(err)
		}
		pins[pin] = true
		if keys, err := m.id.GossipKeys(); err != nil || len(keys) != 1 {
			c.t.Errorf("%s has %d gossip keys: %v", name, len(keys), err)
		}
	}
	if len(pins) != 1 {
		c.t.Errorf("%d authorities are in use", len(pins))
	}
}

// remove takes a member that is dead off the register.
func (c *replicas) remove(name, by string) {
	c.members[by].view.put(membersPrefix+name, nil)
	delete(c.members, name)
}
