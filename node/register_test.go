package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/node/join"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/testbed/loopback"
)

// alone is a cluster of one: a real store, a real agent on loopback.
type alone struct {
	*Node
	replica *replica
	member  *membership
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir, cfg.StateDir = t.TempDir(), t.TempDir()
	cfg.NodeName, cfg.NodeIP, cfg.Port = "n1", netip.MustParseAddr("127.0.0.1"), int(loopback.Addr(t).Port())
	n := &Node{cfg: cfg, log: slog.New(slog.DiscardHandler), left: make(chan struct{}), apiOnly: make(chan struct{})}
	m, err := n.enterCluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := pki.Ensure(cfg.pkiDir(), n.pkiParams(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r, err := n.openReplica(m, keys)
	if err != nil {
		t.Fatal(err)
	}
	storeCtx, stopStore := context.WithCancel(context.Background())
	agentCtx, stopAgent := context.WithCancel(context.Background())
	stored, gossiped := make(chan error, 1), make(chan error, 1)
	go func() { stored <- r.db.Run(storeCtx) }()
	go func() { gossiped <- r.agent.Run(agentCtx) }()
	t.Cleanup(func() {
		stopAgent()
		err := <-gossiped
		stopStore()
		if err := errors.Join(err, <-stored, r.db.Close()); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-r.agent.Ready():
	case err := <-gossiped:
		gossiped <- err
		t.Fatalf("agent: %v", err)
	}
	return &alone{Node: n, replica: r, member: m}
}

// enroll writes a registration, as the other side of a cut would.
func (a *alone) enroll(t *testing.T, reg join.Registration) {
	t.Helper()
	value, err := json.Marshal(reg)
	if err != nil {
		t.Fatal(err)
	}
	put(t, a.replica.db, "/moot/members/"+reg.Name, string(value))
}

func TestNumberGivenTwice(t *testing.T) {
	a := newAlone(t)
	if err := a.register(t.Context(), a.replica, a.member); err != nil {
		t.Fatal(err)
	}
	a.enroll(t, join.Registration{Name: "n0", Number: firstNumber, Machine: "x", Joined: time.Now().Add(time.Hour)})
	if err := a.register(t.Context(), a.replica, a.member); err != nil || a.member.Number != firstNumber {
		t.Errorf("the older gave way: %d, %v", a.member.Number, err)
	}
	a.enroll(t, join.Registration{Name: "n2", Number: firstNumber, Machine: "x", Joined: time.Now().Add(-time.Hour)})
	if err := a.register(t.Context(), a.replica, a.member); err != nil {
		t.Fatal(err)
	}
	number := a.member.Number
	if number == firstNumber {
		t.Fatal("the younger did not give way")
	}
	put(t, a.replica.db, "/registry/x", "1")
	if got := crdt.Revision(a.replica.db.Revision()).Node(); got != number {
		t.Errorf("revisions are of node %d, want %d", got, number)
	}
	if saved, err := a.cfg.loadMembership(); err != nil || saved.Number != number {
		t.Errorf("the next start would take number %d: %v", saved.Number, err)
	}
	changed, cancel := a.replica.agent.Subscribe()
	defer cancel()
	told := func() bool {
		return slices.ContainsFunc(a.replica.agent.Members(), func(m gossip.Member) bool { return m.Self && m.Number == number })
	}
	for !told() {
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("members are not told number %d: %+v", number, a.replica.agent.Members())
		}
	}
}

func TestRemovedWhileItRan(t *testing.T) {
	a := newAlone(t)
	if err := a.register(t.Context(), a.replica, a.member); err != nil {
		t.Fatal(err)
	}
	a.enters = false
	a.enroll(t, join.Registration{Name: "n2", Number: 7, Machine: "x", Joined: time.Now()})
	if err := a.register(t.Context(), a.replica, a.member); err != nil {
		t.Fatal(err)
	}
	if _, err := a.replica.registry.Remove(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if err := a.register(t.Context(), a.replica, a.member); !isOut(err) {
		t.Errorf("after its removal: %v", err)
	}
	a.enroll(t, join.Registration{Name: "n1", Number: 7, Machine: "another", Joined: time.Now()})
	if err := a.register(t.Context(), a.replica, a.member); !isOut(err) {
		t.Errorf("with its name given away: %v", err)
	}
}

func TestTokenIsShownWhereItMay(t *testing.T) {
	a := newAlone(t)
	for _, show := range []bool{false, true} {
		a.cfg.ShowToken = show
		command, err := a.joinCommand(t.Context(), a.replica)
		if err != nil || strings.Contains(command, "--token moot1.") != show {
			t.Errorf("shown %v: %q, %v", show, command, err)
		}
	}
	if list, err := a.replica.tokens.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("tokens %v: %v", list, err)
	}
}

// A machine that has a cluster's keys and is no member was stopped while it joined:
// with those keys it must not begin another.
func TestNoClusterIsBegunWithTheKeysOfAnother(t *testing.T) {
	a := newAlone(t)
	if err := os.Remove(a.cfg.membershipFile()); err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: a.cfg, log: slog.New(slog.DiscardHandler)}
	if _, err := n.enterCluster(t.Context()); err == nil || !strings.Contains(err.Error(), "start it with --join again") {
		t.Errorf("error %v", err)
	}
	if m, err := n.cfg.loadMembership(); err != nil || m != nil {
		t.Errorf("a member of %+v, %v", m, err)
	}
}
