package rotation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/pki"
)

// cluster is some members that share one store, as replication would have it.
type cluster struct {
	t       *testing.T
	db      *store.Store
	members []string
	leader  string
	runners map[string]*Runner
	ids     map[string]*pki.PeerIdentity
	used    map[string]int // times that keys were put to use
}

func testTime() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }

func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	db, err := store.Open(store.DefaultConfig(filepath.Join(t.TempDir(), "store")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, db.Close()); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, db: db, members: names, leader: names[0], runners: map[string]*Runner{}, ids: map[string]*pki.PeerIdentity{}, used: map[string]int{}}
	var material *pki.Material
	for _, name := range names {
		dir := t.TempDir()
		if material != nil {
			if err := pki.Import(dir, *material); err != nil {
				t.Fatal(err)
			}
		}
		b, err := pki.Ensure(dir, pki.Params{
			NodeName: name, NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			ServiceIP: netip.MustParseAddr("10.43.0.1"), ClusterDomain: "cluster.local", APIPort: 6443,
		}, testTime())
		if err != nil {
			t.Fatal(err)
		}
		if c.ids[name], err = b.PeerIdentity(); err != nil {
			t.Fatal(err)
		}
		if material == nil {
			m, err := pki.Export(dir)
			if err != nil {
				t.Fatal(err)
			}
			material = &m
		}
		c.start(name, dir)
	}
	return c
}

// start makes a member's runner, as the start of its daemon does.
func (c *cluster) start(name, dir string) {
	c.t.Helper()
	r, err := New(Config{
		Name: name, Machine: "machine of " + name, Dir: dir, Store: c.db,
		Members: func(context.Context) (map[string]string, error) {
			machines := map[string]string{}
			for _, name := range c.members {
				machines[name] = "machine of " + name
			}
			return machines, nil
		},
		Leads: func() bool { return c.leader == name },
		Taken: func() error { c.used[name]++; return nil },
		Now:   testTime, Log: slog.New(slog.DiscardHandler), Every: time.Second,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.runners[name] = r
}

func (c *cluster) step(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if err := c.runners[name].step(c.t.Context()); err != nil {
			c.t.Fatalf("%s: %v", name, err)
		}
	}
}

func (c *cluster) status() Status {
	c.t.Helper()
	s, err := c.runners[c.members[0]].Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *cluster) wantWhole() {
	c.t.Helper()
	wantWhole(c.t, c.ids)
}

// wantWhole checks that all members trust each other, and that each opens what
// another encrypts.
func wantWhole(t testing.TB, ids map[string]*pki.PeerIdentity) {
	t.Helper()
	for a, i := range ids {
		_, pool, err := i.TLS()
		if err != nil {
			t.Fatal(err)
		}
		keys, err := i.GossipKeys()
		if err != nil {
			t.Fatal(err)
		}
		for b, j := range ids {
			cert, _, err := j.TLS()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: testTime()}); err != nil {
				t.Fatalf("%s does not trust %s: %v", a, b, err)
			}
			theirs, err := j.GossipKeys()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(keys, func(key []byte) bool { return bytes.Equal(key, theirs[0]) }) {
				t.Fatalf("%s cannot open what %s encrypts", a, b)
			}
		}
	}
}

func (c *cluster) pins() map[string]int {
	c.t.Helper()
	pins := map[string]int{}
	for _, i := range c.ids {
		pin, err := i.Pin()
		if err != nil {
			c.t.Fatal(err)
		}
		pins[pin]++
	}
	return pins
}

func TestRotation(t *testing.T) {
	c := newCluster(t, "n1", "n2", "n3")
	old := c.pins()
	c.step("n1", "n2", "n3") // nothing to do
	if s := c.status(); s.ID != "" || len(c.used) != 0 {
		t.Fatalf("a rotation that nobody asked for: %+v", s)
	}
	s, err := c.runners["n2"].Start(t.Context())
	if err != nil || s.Stage != StageTrust || len(s.Waiting) != 3 || s.By != "n2" {
		t.Fatalf("start: %+v, %v", s, err)
	}
	if _, err := c.runners["n1"].Start(t.Context()); !errors.Is(err, ErrUnderWay) {
		t.Errorf("another start: %v", err)
	}
	// n3 is away: the rotation waits for it, whoever leads and however often
	// the others look; the cluster is whole all along.
	for range 3 {
		c.step("n1", "n2")
		c.wantWhole()
	}
	if s := c.status(); s.Stage != StageTrust || !slices.Equal(s.Waiting, []string{"n3"}) {
		t.Fatalf("without n3: %+v", s)
	}
	if c.used["n1"] != 1 {
		t.Errorf("keys of one stage were put to use %d times", c.used["n1"])
	}
	c.leader = "n3"
	for range 4 {
		c.step("n3", "n1", "n2")
		c.wantWhole()
	}
	if s := c.status(); s.Stage != StageDone || len(s.Waiting) != 0 {
		t.Fatalf("in the end: %+v", s)
	}
	for pin, n := range c.pins() {
		if n != 3 || old[pin] != 0 {
			t.Errorf("%d members show authority %s, before %v", n, pin, old)
		}
	}
	for name, i := range c.ids {
		if keys, err := i.GossipKeys(); err != nil || len(keys) != 1 {
			t.Errorf("%s has %d gossip keys: %v", name, len(keys), err)
		}
	}
	rec, _, err := c.runners["n1"].read(t.Context())
	if err != nil || rec.Sealed != nil {
		t.Errorf("the record still holds the keys: %v", err)
	}
	// And again.
	if s, err := c.runners["n1"].Start(t.Context()); err != nil || s.Stage != StageTrust || len(s.Waiting) != 3 {
		t.Errorf("the next rotation: %+v, %v", s, err)
	}
}

// A member that is killed at any moment takes the stage up where it is.
func TestRestartDuringARotation(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	if _, err := c.runners["n1"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for _, name := range c.members {
			c.start(name, c.runners[name].cfg.Dir)
			c.step(name)
			c.wantWhole()
		}
	}
	if s := c.status(); s.Stage != StageDone {
		t.Errorf("stage %s", s.Stage)
	}
}

func TestRemovedMemberHoldsNothingUp(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	if _, err := c.runners["n1"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.step("n1", "n1", "n1")
	if s := c.status(); s.Stage != StageTrust {
		t.Fatalf("stage %s without n2", s.Stage)
	}
	c.members = []string{"n1"}
	c.step("n1", "n1", "n1", "n1")
	if s := c.status(); s.Stage != StageDone {
		t.Errorf("stage %s", s.Stage)
	}
}

// What a failure to put keys to use, or a record of another's, must not do is
// count as taken.
func TestNotTaken(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	if _, err := c.runners["n1"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	broken := c.runners["n2"]
	broken.cfg.Taken = func() error { return errors.New("keyring is stuck") }
	if err := broken.step(t.Context()); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("error %v", err)
	}
	c.step("n1")
	if s := c.status(); !slices.Equal(s.Waiting, []string{"n2"}) {
		t.Errorf("waiting for %v", s.Waiting)
	}
	foreign := newCluster(t, "x1")
	rec, mod, err := c.runners["n1"].read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rec.Sealed, err = foreign.runners["x1"].seal(pki.Stages{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.runners["n1"].write(t.Context(), *rec, mod); err != nil {
		t.Fatal(err)
	}
	c.start("n1", c.runners["n1"].cfg.Dir)
	if err := c.runners["n1"].step(t.Context()); err == nil || !strings.Contains(err.Error(), "other keys") {
		t.Errorf("error %v", err)
	}
	c.wantWhole()
}

func TestTheRecordKeepsKeysSecret(t *testing.T) {
	c := newCluster(t, "n1")
	if _, err := c.runners["n1"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, _, err := c.runners["n1"].read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(rec.Sealed, []byte("PRIVATE")) || len(rec.Sealed) < 100 {
		t.Errorf("%d bytes, readable", len(rec.Sealed))
	}
	stages, err := c.runners["n1"].unseal(rec.Sealed)
	if err != nil || len(stages.Drop) == 0 {
		t.Errorf("unseal: %v", err)
	}
	rec.Sealed[len(rec.Sealed)-1] ^= 1
	if _, err := c.runners["n1"].unseal(rec.Sealed); err == nil {
		t.Error("a changed record is taken")
	}
	if _, err := json.Marshal(rec); err != nil {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := newCluster(t, "n1")
	if _, err := c.runners["n1"].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.runners["n1"].cfg.Every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.runners["n1"].Run(ctx) }()
	for c.status().Stage != StageDone {
		select {
		case err := <-done:
			t.Fatalf("run ended: %v", err)
		case <-t.Context().Done():
			t.Fatal("the rotation does not end")
		default:
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
