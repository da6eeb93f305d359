package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// shop is frontends of every kind that is written differently.
func shop() map[Frontend]Service {
	pods := []Backend{
		{Addr: netip.MustParseAddrPort("10.42.0.2:80"), Local: true}, {Addr: netip.MustParseAddrPort("10.42.0.3:80")},
	}
	return map[Frontend]Service{
		frontend("10.43.0.1:80", TCP):                            {Name: "inside", Backends: pods},
		frontend("10.43.0.5:80", TCP):                            {Name: "many", Backends: backendsOf(near + 1)},
		frontend("10.43.0.6:80", TCP):                            {Name: "as many as lie near", Backends: backendsOf(near)},
		{netip.MustParseAddrPort("0.0.0.0:30083"), TCP, Outside}: {Name: "many outside", Backends: backendsOf(near + 1)},
		frontend("10.43.0.2:80", TCP):                            {Name: "affinity", Backends: pods, Affinity: time.Hour},
		frontend("10.43.0.3:80", UDP):                            {Name: "none"},
		frontend("10.43.0.4:80", UDP):                            {Name: "silent", Drop: true},
		{netip.MustParseAddrPort("0.0.0.0:30080"), TCP, Outside}: {Name: "table", Backends: pods},
		{netip.MustParseAddrPort("0.0.0.0:30081"), UDP, Outside}: {Name: "members", Backends: pods},
		{netip.MustParseAddrPort("0.0.0.0:30084"), UDP, Outside}: {Name: "draining", Backends: pods[1:], Draining: pods},
		{netip.MustParseAddrPort("0.0.0.0:30082"), TCP, Outside}: {Name: "one", Backends: pods[1:]},
		{netip.MustParseAddrPort("192.0.2.1:80"), TCP, Outside}: {
			Name: "sources", Backends: pods,
			Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.0.7/24")},
		},
	}
}

// written is what the maps hold, numbers and all: each write of a frontend takes
// a new number.
func written(t *testing.T, b *Balancer) string {
	t.Helper()
	services := map[frontendKey]frontendValue{}
	out := ""
	for name, read := range map[string]func(*ebpf.Map) error{
		"moot_services": func(m *ebpf.Map) error {
			return list(m, func(k frontendKey, v frontendValue) { services[k] = v })
		},
	} {
		if err := read(b.coll.Maps[name]); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"moot_slots", "moot_tables", "moot_members", "moot_sources"} {
		out += fmt.Sprintf("%s %d\n", name, count(t, b, name))
	}
	return out + fmt.Sprint(services) // maps are printed in the order of their keys
}

func TestUnchangedFrontendsAreNotWritten(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	if err := b.Resync(shop()); err != nil {
		t.Fatal(err)
	}
	want := written(t, b)
	mixed := shop()
	for f, s := range mixed {
		if len(s.Backends) == 2 {
			s.Backends = []Backend{s.Backends[1], s.Backends[0], s.Backends[1]}
		}
		s.Name += " renamed"
		mixed[f] = s
	}
	for what, do := range map[string]func() error{
		"apply": func() error { return b.Apply(shop(), nil) }, "resync": func() error { return b.Resync(shop()) },
		"another order": func() error { return b.Resync(mixed) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if got := written(t, b); got != want {
			t.Errorf("%s of the same:\n%s\nbefore:\n%s", what, got, want)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openNode(t, cfg)
	for range 2 {
		if err := b.Resync(shop()); err != nil {
			t.Fatal(err)
		}
		if got := written(t, b); got != want {
			t.Errorf("after a restart:\n%s\nbefore:\n%s", got, want)
		}
	}
	// Each change is one, also of what was adopted, and only of its frontend.
	for f := range shop() {
		for what, change := range map[string]func(*Service){
			"a backend":  func(s *Service) { s.Backends = []Backend{{Addr: netip.MustParseAddrPort("10.42.0.9:80")}} },
			"where":      func(s *Service) { s.Backends = []Backend{{Addr: netip.MustParseAddrPort("10.42.0.9:80"), Local: true}} },
			"who drains": func(s *Service) { s.Draining = []Backend{{Addr: netip.MustParseAddrPort("10.42.0.8:80")}} },
			"affinity":   func(s *Service) { s.Affinity = 7 * time.Second },
			"silence":    func(s *Service) { s.Drop = !s.Drop },
			"a range":    func(s *Service) { s.Sources = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")} },
			"its length": func(s *Service) { s.Sources = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/17")} },
		} {
			before := b.held[keyOf(f)].service
			s := shop()[f]
			change(&s)
			if len(s.Sources) > 0 && f.Side == Inside {
				continue // refused there
			}
			if what == "who drains" && (f.Side == Inside || f.Protocol == TCP) {
				continue // nothing there
			}
			next := b.next
			if err := b.Apply(map[Frontend]Service{f: s}, nil); err != nil {
				t.Fatal(err)
			}
			if after := b.held[keyOf(f)].service; after.Set == before.Set || after.ID != before.ID || b.next != next+1 {
				t.Errorf("%s, %s changed: %+v, before %+v, %d numbers taken", f, what, after, before, b.next-next)
			}
		}
	}
	if err := b.Resync(shop()); err != nil {
		t.Fatal(err)
	}
	lines := func(s string) string { return strings.SplitAfter(s, "map[")[0] }
	if got := written(t, b); lines(got) != lines(want) {
		t.Errorf("after changes there and back:\n%s\nbefore:\n%s", got, want)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// What a process that ended in the middle left is not taken for whole.
func TestHalfWrittenIsWrittenAgain(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	if err := b.Resync(shop()); err != nil {
		t.Fatal(err)
	}
	affine := frontend("10.43.0.2:80", TCP)
	other := Frontend{netip.MustParseAddrPort("0.0.0.0:30080"), TCP, Outside}
	one, two := b.held[keyOf(affine)].service, b.held[keyOf(other)].service
	stray := memberKey{ID: one.ID, Addr: netip.MustParseAddr("10.42.0.77").As16(), Port: order(80)}
	err := errors.Join(
		b.coll.Maps["moot_members"].Put(stray, uint8(0)),
		b.coll.Maps["moot_tables"].Put(slotKey{two.Set, 1}, table{1, 1, 1}),
		b.coll.Maps["moot_slots"].Put(slotKey{1 << 20, 0}, backend{}),
		b.coll.Maps["moot_tables"].Put(slotKey{1 << 20, 0}, table{}),
		b.Close(),
	)
	if err != nil {
		t.Fatal(err)
	}
	b = openNode(t, cfg)
	if err := b.Resync(shop()); err != nil {
		t.Fatal(err)
	}
	if got := b.held[keyOf(affine)].service; got.Set == one.Set {
		t.Error("a frontend with a member too many was left as it is")
	}
	if got := b.held[keyOf(other)].service; got.Set == two.Set {
		t.Error("a frontend with another table was left as it is")
	}
	var flags uint8
	if err := b.coll.Maps["moot_members"].Lookup(stray, &flags); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("a member that no frontend has: %v", err)
	}
	if err := b.Resync(nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"moot_services", "moot_slots", "moot_tables", "moot_members", "moot_sources"} {
		if n := count(t, b, name); n != 0 {
			t.Errorf("%s: %d left", name, n)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

// When the map has no room for all, the error names who is left out and the
// others are served.
func TestNoRoomFailsOnlyWhoHasNone(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	small, err := ebpf.NewMap(&ebpf.MapSpec{Name: "moot_slots", Type: ebpf.Hash, KeySize: 8, ValueSize: 20, MaxEntries: 300 * (near + 1), Flags: 1})
	if err != nil {
		t.Fatal(err)
	}
	_ = b.coll.Maps["moot_slots"].Close()
	b.coll.Maps["moot_slots"] = small
	want := map[Frontend]Service{}
	for i := range 400 {
		addr := netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)})
		want[Frontend{Addr: netip.AddrPortFrom(addr, 80), Protocol: TCP}] = Service{Name: "shop/web", Backends: backendsOf(near + 1)}
	}
	err = b.Apply(want, nil)
	if err == nil || !strings.Contains(err.Error(), "the map is full: Hash(moot_slots)") || !strings.Contains(err.Error(), "1500 entries") || !strings.Contains(err.Error(), "shop/web") {
		t.Errorf("no room: %v", err)
	}
	failed := strings.Count(fmt.Sprint(err), "shop/web")
	if served := count(t, b, "moot_services"); served+failed != 400 || served*(near+1) != count(t, b, "moot_slots") || served < 200 {
		t.Errorf("%d served with %d slots, %d errors", served, count(t, b, "moot_slots"), failed)
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}
