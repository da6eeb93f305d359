package balance

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/mootkube/moot/ebpf"
)

// table holds which Service has which frontends, and settles who has one that
// several claim: the oldest, as where an address was given twice in a cut.
type table struct {
	plans  map[types.NamespacedName]servicePlan
	claims map[ebpf.Frontend][]types.NamespacedName // oldest first
}

// servicePlan is one Service's part of the table.
type servicePlan struct {
	created   time.Time
	frontends map[ebpf.Frontend]ebpf.Service
}

func newTable() *table {
	return &table{plans: map[types.NamespacedName]servicePlan{}, claims: map[ebpf.Frontend][]types.NamespacedName{}}
}

// change is what the kernel is to be told.
type change struct {
	set  map[ebpf.Frontend]ebpf.Service
	gone map[ebpf.Frontend]bool
}

func newChange() change {
	return change{set: map[ebpf.Frontend]ebpf.Service{}, gone: map[ebpf.Frontend]bool{}}
}

func (c change) empty() bool { return len(c.set) == 0 && len(c.gone) == 0 }

// put makes next the Service's plan, none when it has no frontends, and adds to c
// what that changes.
func (t *table) put(name types.NamespacedName, next servicePlan, c change) {
	before := t.plans[name]
	if len(next.frontends) == 0 {
		delete(t.plans, name)
	} else {
		t.plans[name] = next
	}
	for f := range before.frontends {
		if _, still := next.frontends[f]; !still || !before.created.Equal(next.created) {
			t.unclaim(f, name)
		}
	}
	for f := range next.frontends {
		t.claim(f, name)
	}
	for f := range before.frontends {
		if _, still := next.frontends[f]; !still {
			t.settle(f, c)
		}
	}
	for f, s := range next.frontends {
		if old, had := before.frontends[f]; had && t.claims[f][0] == name && before.created.Equal(next.created) && same(old, s) {
			continue
		}
		t.settle(f, c)
	}
}

// same compares without regard to the order of backends.
func same(a, b ebpf.Service) bool {
	a.Backends, b.Backends = sorted(a.Backends), sorted(b.Backends)
	a.Draining, b.Draining = sorted(a.Draining), sorted(b.Draining)
	return reflect.DeepEqual(a, b)
}

func sorted(backends []ebpf.Backend) []ebpf.Backend {
	return slices.SortedFunc(slices.Values(backends), func(a, b ebpf.Backend) int { return a.Addr.Compare(b.Addr) })
}

// settle says in c where the frontend leads now.
func (t *table) settle(f ebpf.Frontend, c change) {
	delete(c.set, f)
	delete(c.gone, f)
	if holders := t.claims[f]; len(holders) > 0 {
		c.set[f] = t.plans[holders[0]].frontends[f]
		return
	}
	c.gone[f] = true
}

func (t *table) claim(f ebpf.Frontend, name types.NamespacedName) {
	holders := t.claims[f]
	if slices.Contains(holders, name) {
		return
	}
	at, _ := slices.BinarySearchFunc(holders, name, func(a, b types.NamespacedName) int {
		return cmp.Or(t.plans[a].created.Compare(t.plans[b].created), cmp.Compare(a.String(), b.String()))
	})
	t.claims[f] = slices.Insert(holders, at, name)
}

func (t *table) unclaim(f ebpf.Frontend, name types.NamespacedName) {
	holders := slices.DeleteFunc(t.claims[f], func(n types.NamespacedName) bool { return n == name })
	if len(holders) == 0 {
		delete(t.claims, f)
		return
	}
	t.claims[f] = holders
}

// all returns every frontend with whom it leads to.
func (t *table) all() map[ebpf.Frontend]ebpf.Service {
	out := make(map[ebpf.Frontend]ebpf.Service, len(t.claims))
	for f, holders := range t.claims {
		out[f] = t.plans[holders[0]].frontends[f]
	}
	return out
}
