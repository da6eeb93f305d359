package ebpf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What cannot be served is refused with the reason, and takes nothing else down.
func TestBadInputsAreRefused(t *testing.T) {
	cfg, in := inNode(t)
	if !in {
		return
	}
	b := openNode(t, cfg)
	good := frontend("10.43.0.50:80", TCP)
	to := func(addr string) Service {
		return Service{Name: "shop/web", Backends: []Backend{{Addr: netip.MustParseAddrPort(addr)}}}
	}
	many := Service{Backends: make([]Backend, maxBackends+1)}
	for i := range many.Backends {
		many.Backends[i].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
	}
	outside := good
	outside.Side = Outside
	odd := good
	odd.Side = 7
	for what, c := range map[string]struct {
		front Frontend
		s     Service
		want  string
	}{
		"no frontend":             {Frontend{Protocol: TCP}, Service{}, "not an address and port"},
		"no port":                 {frontend("10.43.0.9:0", TCP), Service{}, "not an address and port"},
		"an address in two forms": {frontend("[::ffff:10.43.0.9]:80", TCP), Service{}, "not an address and port"},
		"a zone":                  {frontend("[fe80::1%eth0]:80", TCP), Service{}, "not an address and port"},
		"SCTP":                    {frontend("10.43.0.9:80", 132), Service{}, "protocol 132 10.43.0.9:80 from inside: only TCP and UDP"},
		"no protocol":             {frontend("10.43.0.9:80", 0), Service{}, "only TCP and UDP"},
		"a side":                  {odd, Service{}, "side 7 unknown"},
		"another family":          {good, to("[fd42::2]:80"), "backend [fd42::2]:80: not an address and port of its family"},
		"a backend without port":  {good, to("10.42.0.2:0"), "backend 10.42.0.2:0: not"},
		"a backend of two forms":  {good, to("[::ffff:10.42.0.2]:80"), "not an address"},
		"a backend nowhere":       {good, to("0.0.0.0:80"), "backend 0.0.0.0:80: not"},
		"no backend":              {good, Service{Backends: make([]Backend, 1)}, "not an address"},
		"too many backends":       {good, many, "65522 backends, more than 65521"},
		"no range":                {outside, Service{Sources: make([]netip.Prefix, 1)}, "not a range of addresses"},
		"ranges inside":           {good, Service{Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "from outside only"},
		"no time":                 {good, Service{Affinity: -time.Second}, "negative"},
	} {
		other := frontend("10.43.0.51:80", TCP)
		for _, do := range []func(map[Frontend]Service) error{
			b.Resync, func(set map[Frontend]Service) error { return b.Apply(set, nil) },
		} {
			err := do(map[Frontend]Service{c.front: c.s, other: to("10.42.0.2:80")})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", what, err, c.want)
			}
			if n := count(t, b, "moot_services"); n != 1 {
				t.Errorf("%s: %d frontends are served, want the other one", what, n)
			}
		}
	}
	for what, err := range map[string]error{
		"own address":    b.SetAddresses([]netip.Addr{{}}),
		"gone frontend":  b.Apply(nil, []Frontend{{}}),
		"uplink":         b.SetDevices([]string{"none"}, nil),
		"loopback":       b.SetDevices([]string{"lo"}, nil),
		"target":         second(b.Disconnect(t.Context(), []Target{{Protocol: TCP}})),
		"no cgroup":      second(Open(Config{Pins: cfg.Pins, Log: cfg.Log})),
		"no pins":        second(Open(Config{Cgroup: cfg.Cgroup, Log: cfg.Log})),
		"no logger":      second(Open(Config{Cgroup: cfg.Cgroup, Pins: cfg.Pins})),
		"pins elsewhere": second(Open(Config{Cgroup: cfg.Cgroup, Pins: t.TempDir(), Log: cfg.Log})),
	} {
		if err == nil {
			t.Errorf("%s: taken", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	if err := errors.Join(b.Close(), Remove(cfg)); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestLoadErrorsTellWhatTheVerifierSays(t *testing.T) {
	newPins(t) // root
	spec, err := loadSock()
	if err != nil {
		t.Fatal(err)
	}
	spec.Programs["moot_connect4"].Instructions = asm.Instructions{asm.Return()} // of nothing
	coll, err := load("socket programs", spec, ebpf.CollectionOptions{})
	if err == nil {
		coll.Close()
		t.Fatal("a program that returns nothing was loaded")
	}
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) || len(verifier.Log) == 0 {
		t.Fatalf("%v, without the verifier's log", err)
	}
	if !strings.Contains(err.Error(), "load socket programs: program moot_connect4") || !strings.Contains(err.Error(), "R0 !read_ok") {
		t.Errorf("%v", err)
	}
}
