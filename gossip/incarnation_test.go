package gossip_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// TestIncarnations: a restarted replica goes on as the one it was when all members
// have told it what they have of it, and as another one when some are down: they
// may have more of it than its disk has.
func TestIncarnations(t *testing.T) {
	a := newAuthority(t)
	all := make([]*machine, 3)
	for i := range all {
		all[i] = newMachine(t, a, i+1, fmt.Sprintf("n%d", i+1))
		all[i].storeCfg.RunFile = filepath.Join(t.TempDir(), "run")
		all[i].start(all[0].addr)
	}
	n1, n2, n3 := all[0], all[1], all[2]
	for _, m := range all {
		n1.put("/moot/members/"+m.name, fmt.Sprintf(`{"number":%d,"address":%q}`, m.cfg.Number, m.addr))
	}
	together := func(who ...*machine) {
		t.Helper()
		eventually(t, "stores agree", func() bool {
			for _, m := range who {
				if m.alive() != len(who) {
					return false
				}
			}
			return agreed(who...)
		})
	}
	rewrite := func(m *machine) crdt.Origin {
		t.Helper()
		if err := m.agent.CatchUp(t.Context()); err != nil {
			t.Log(err) // a member that has just gone
		}
		m.put("/registry/x/"+m.name, fmt.Sprint(m.store.Revision()))
		return m.store.Origin()
	}
	together(all...)
	first := rewrite(n3)

	n3.stop()
	n3.boots()
	n3.start(n1.addr)
	together(all...)
	if got := rewrite(n3); got != first {
		t.Errorf("all were asked, and the incarnation is %s instead of %s", got, first)
	}

	n2.stop()
	n3.stop()
	n3.boots()
	n3.start(n1.addr)
	eventually(t, "n3 is back", func() bool { return n1.alive() == 2 && n3.alive() == 2 && agreed(n1, n3) })
	second := rewrite(n3)
	if second == first {
		t.Error("n2 was not asked, and the incarnation is the same")
	}
	eventually(t, "the incarnation is known", func() bool {
		for _, m := range n1.agent.Members() {
			if m.Name == n3.name {
				return m.Origin == second
			}
		}
		return false
	})

	n2.start(n1.addr)
	together(all...)
	if got := rewrite(n3); got != second {
		t.Errorf("incarnation %s instead of %s", got, second)
	}
	together(all...)
}

// boots has the machine boot, which clears what it keeps in memory.
func (m *machine) boots() {
	m.t.Helper()
	if err := os.Remove(m.storeCfg.RunFile); err != nil {
		m.t.Fatal(err)
	}
}

// TestCatchUpWithAPartOfAFrame: the one member that can be asked has changes of this
// node's that it does not include yet, for what it got of them had not come to its
// end. The node, whose disk was put back, must not take their names.
func TestCatchUpWithAPartOfAFrame(t *testing.T) {
	a := newAuthority(t)
	n1, n2 := newMachine(t, a, 1, "n1"), newMachine(t, a, 2, "n2")
	n1.storeCfg.RunFile = filepath.Join(t.TempDir(), "run")
	n1.start()
	n2.start(n1.addr)
	for _, m := range []*machine{n1, n2} {
		n1.put("/moot/members/"+m.name, fmt.Sprintf(`{"number":%d,"address":%q}`, m.cfg.Number, m.addr))
	}
	eventually(t, "stores agree", func() bool { return n1.alive() == 2 && n2.alive() == 2 && agreed(n1, n2) })
	own := n1.store.Origin()
	next := n1.store.Vector()[own] + 1
	n1.stop()
	for i := range uint64(10) {
		r := crdt.Put(nil, fmt.Append(nil, "/registry/lost/", i), []byte("x"), crdt.Dot{Origin: own, Seq: next + i}, crdt.StampAt(time.Now()), crdt.Change{})
		if err := n2.store.Apply(t.Context(), []*crdt.Record{r}, nil); err != nil {
			t.Fatal(err)
		}
	}
	n1.boots()
	n1.start(n2.addr)
	<-n1.agent.Ready()
	if err := n1.agent.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		n1.put(fmt.Sprint("/registry/new/", i), "y")
	}
	eventually(t, "n2 has what n1 wrote", func() bool { return n2.store.Vector().Includes(n1.store.Vector()) })
	for i := range 12 {
		if got := n2.get(fmt.Sprint("/registry/new/", i)); got != "y" {
			t.Errorf("write %d of n1 is %q on n2", i, got)
		}
	}
}
