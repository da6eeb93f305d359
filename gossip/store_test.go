package gossip_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip"
	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

func pod(name, value string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"uid":"u-%s"},"a":%q}`, name, name, value)
}

// machines starts a cluster of real stores on real sockets.
func machines(t *testing.T, n int) []*machine {
	t.Helper()
	a := newAuthority(t)
	all := make([]*machine, n)
	for i := range all {
		all[i] = newMachine(t, a, i+1, fmt.Sprintf("n%d", i+1))
		if i == 0 {
			all[i].start()
		} else {
			all[i].start(all[0].addr)
		}
	}
	eventually(t, "cluster forms", func() bool {
		for _, m := range all {
			if m.alive() != n {
				return false
			}
		}
		return true
	})
	return all
}

func TestStoresConverge(t *testing.T) {
	all := machines(t, 3)
	for i := range 50 {
		m := all[i%3]
		m.put(fmt.Sprintf("/registry/pods/default/p%d", i), pod(fmt.Sprintf("p%d", i), "1"))
	}
	eventually(t, "stores agree", func() bool { return agreed(all...) })
	for _, m := range all {
		if got := m.get("/registry/pods/default/p7"); got != pod("p7", "1") {
			t.Errorf("%s holds %q", m.name, got)
		}
	}
	eventually(t, "writes are acknowledged by a peer", func() bool {
		before := all[0].agent.Status().Acks.Peer
		all[0].put("/registry/pods/default/x", pod("x", fmt.Sprint(before)))
		return all[0].agent.Status().Acks.Peer > before
	})
	eventually(t, "status says so", func() bool {
		for _, m := range all[0].agent.Status().Members {
			if !m.Self && (!m.Follows || !m.Followed || m.Behind != 0 || m.Ahead != 0 || m.Differs || m.Digest == "" || m.RoundTrip == 0) {
				return false
			}
		}
		return true
	})
}

func TestStoresConvergeAfterARestart(t *testing.T) {
	all := machines(t, 3)
	all[0].put("/registry/pods/default/gone", pod("gone", "1"))
	eventually(t, "stores agree", func() bool { return agreed(all...) })
	n3 := all[2]
	n3.stop()
	for i := range 20 {
		all[i%2].put(fmt.Sprintf("/registry/pods/default/p%d", i), pod(fmt.Sprintf("p%d", i), "1"))
	}
	all[0].delete("/registry/pods/default/gone")
	n3.start(all[1].addr)
	eventually(t, "stores agree", func() bool { return agreed(all...) && n3.alive() == 3 })
	if got := n3.get("/registry/pods/default/gone"); got != "" {
		t.Errorf("what was deleted is %q", got)
	}
}

// forgets waits until a store has forgotten deletes that have lacks.
func forgets(m *machine, have crdt.Vector) {
	m.t.Helper()
	eventually(m.t, "deletes are forgotten", func() bool {
		tail, err := m.store.Tail(m.t.Context(), have)
		if err == nil {
			tail.Close()
		}
		return errors.Is(err, store.ErrForgotten)
	})
}

// A replica that was away while deletes were forgotten is wiped and filled
// again before it serves; once it serves, it must not go on.
func TestForgottenReplica(t *testing.T) {
	a := newAuthority(t)
	n1, n2 := newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	for _, m := range []*machine{n1, n2} {
		m.storeCfg.TombstoneKeep, m.storeCfg.HistoryEntries = 1, 10
	}
	n1.start()
	n2.start(n1.addr)
	n1.put("/registry/pods/default/gone", pod("gone", "1"))
	eventually(t, "stores agree", func() bool { return n1.alive() == 2 && agreed(n1, n2) })
	had := n1.store.Vector().Clone()
	n2.stop()
	n1.delete("/registry/pods/default/gone")
	for i := range 200 {
		n1.put(fmt.Sprintf("/registry/pods/default/p%d", i%5), pod(fmt.Sprintf("p%d", i%5), fmt.Sprint(i)))
	}
	n1.agent.Serving()
	forgets(n1, had)
	n2.start()
	n2.agent.Serving()
	n2.put("/registry/pods/default/alone", pod("alone", "1"))
	n2.delete("/registry/pods/default/gone")
	for i := range 200 { // this side forgets, too
		n2.put(fmt.Sprintf("/registry/pods/default/q%d", i%5), pod(fmt.Sprintf("q%d", i%5), fmt.Sprint(i)))
	}
	forgets(n2, had)
	n2.stop()
	n2.start(n1.addr)
	n2.agent.Serving()
	select {
	case err := <-n2.done:
		n2.done <- nil
		if !errors.Is(err, gossip.ErrForgotten) {
			t.Fatalf("run of a replica that is served from ended with %v", err)
		}
	case err := <-n1.done:
		n1.done <- nil
		t.Fatalf("the one that is not to give way ended with %v", err)
	}
	n2.stop()
	n2.start(n1.addr)
	if err := n2.agent.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stores agree", func() bool { return agreed(n1, n2) })
	if got := n2.get("/registry/pods/default/gone"); got != "" {
		t.Errorf("what was deleted is %q", got)
	}
	n2.put("/registry/pods/default/later", pod("later", "1"))
	eventually(t, "stores agree again", func() bool { return agreed(n1, n2) })
	for _, name := range []string{"alone", "later", "q4"} {
		if n1.get("/registry/pods/default/"+name) == "" {
			t.Errorf("what only n2 wrote is lost: %s", name)
		}
	}
}

// A wiped replica is filled by a member that has what was wiped, and not by one
// that was behind as well; when no such member comes, by what is there.
func TestWipedReplicaIsFilledByWhoHasIt(t *testing.T) {
	for name, returns := range map[string]bool{"it returns": true, "it is gone": false} {
		t.Run(name, func(t *testing.T) {
			all := machines(t, 3)
			n1, n2, n3 := all[0], all[1], all[2]
			n1.put("/registry/pods/default/old", pod("old", "1"))
			eventually(t, "stores agree", func() bool { return agreed(all...) })
			n3.stop()
			n1.put("/registry/pods/default/new", pod("new", "1"))
			eventually(t, "stores agree", func() bool { return agreed(n1, n2) })
			had := n1.store.Vector()
			n1.stop()
			n2.put("/registry/pods/default/alone", pod("alone", "1"))
			n2.stop()
			if !returns {
				n2.cfg.FillWait = time.Millisecond
			}
			n2.start(n3.addr)
			if err := n2.store.Wipe(t.Context(), had); err != nil {
				t.Fatal(err)
			}
			if n2.agent.Serving() {
				t.Error("it would be served from though it is empty")
			}
			n3.start(n2.addr)
			if returns {
				eventually(t, "the other one is not tailed", func() bool {
					for _, m := range n2.agent.Status().Members {
						if m.Name == n3.name {
							return strings.Contains(m.Error, "has not all that was wiped")
						}
					}
					return false
				})
				if got := n2.get("/registry/pods/default/old"); got != "" {
					t.Errorf("it was filled with %q", got)
				}
				n1.start(n2.addr)
			}
			if err := n2.agent.Bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			if owed := n2.store.Owed(); owed != nil {
				t.Errorf("it still waits for %v", owed)
			}
			want := map[string]bool{"old": true, "alone": true, "new": returns}
			for name, there := range want {
				if got := n2.get("/registry/pods/default/" + name); (got != "") != there {
					t.Errorf("%s is %q", name, got)
				}
			}
			n3.agent.Serving()
			n2.agent.Serving()
			if !returns {
				n1.start(n2.addr)
			}
			eventually(t, "all agree", func() bool { return agreed(all...) })
			for name := range want {
				if n3.get("/registry/pods/default/"+name) == "" {
					t.Errorf("%s is lost", name)
				}
			}
		})
	}
}

func TestBootstrapOfAnEmptyStore(t *testing.T) {
	a := newAuthority(t)
	n1, n2 := newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	n1.start()
	filler := strings.Repeat("x", 2000)
	for i := range 300 {
		n1.put(fmt.Sprintf("/registry/pods/default/p%d", i), pod(fmt.Sprintf("p%d", i), filler))
	}
	n2.start(n1.addr)
	if err := n2.agent.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n2.store.Digest() != n1.store.Digest() {
		t.Error("bootstrapped, and the digests differ")
	}
	if l, ok := n2.agent.Leader(); !ok || l.Name != "n1" {
		t.Errorf("leader %+v, want the oldest", l)
	}
	if err := n2.agent.CatchUp(t.Context()); err != nil {
		t.Error(err)
	}
	for _, m := range n1.agent.Members() {
		if m.State != gossip.StateAlive {
			t.Errorf("%s is %s", m.Name, m.State)
		}
	}
}
