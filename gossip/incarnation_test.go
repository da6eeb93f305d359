package gossip_test

import (
	"fmt"
	"testing"

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
		all[i].storeCfg.Doubt = true
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
	n3.start(n1.addr)
	together(all...)
	if got := rewrite(n3); got != first {
		t.Errorf("all were asked, and the incarnation is %s instead of %s", got, first)
	}

	n2.stop()
	n3.stop()
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
