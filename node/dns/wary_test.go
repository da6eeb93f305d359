package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	mdns "github.com/miekg/dns"

	"github.com/mootkube/moot/testbed/loopback"
)

// byThirdOctet takes 10.42.1.0/24 and fd00:1::/64 for a node that is not doubted,
// those with 2 for a suspect one and those with 3 for a dead one.
func byThirdOctet(addr netip.Addr) int {
	n := addr.As16()[3]
	if addr.Is4() {
		n = addr.As4()[2]
	}
	return map[byte]int{2: 1, 3: 2}[n]
}

func records(t *testing.T, lines ...string) []mdns.RR {
	t.Helper()
	var out []mdns.RR
	for _, line := range lines {
		name, rest, _ := strings.Cut(line, " ")
		rr, err := mdns.NewRR(name + " 5 IN " + rest)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr)
	}
	return out
}

func shown(rrs []mdns.RR) []string {
	var out []string
	for _, rr := range rrs {
		out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return out
}

func TestLeastDoubted(t *testing.T) {
	const web = "web.shop.svc.cluster.local."
	pod := func(name string) string { return name + "." + web }
	srv := func(name string) string { return "_http._tcp." + web + " SRV 0 33 80 " + pod(name) }
	for name, tc := range map[string]struct {
		answer, extra         []string
		wantAnswer, wantExtra []string // nil: as it was
	}{
		"nobody is doubted":    {answer: []string{web + " A 10.42.1.5", web + " A 10.42.1.6"}},
		"of nobody":            {answer: []string{web + " A 10.43.0.9", web + " A 192.0.9.1"}},
		"suspect":              {answer: []string{web + " A 10.42.2.5", web + " A 10.42.1.5"}, wantAnswer: []string{web + " A 10.42.1.5"}},
		"dead":                 {answer: []string{web + " A 10.42.1.5", web + " A 10.42.3.5"}, wantAnswer: []string{web + " A 10.42.1.5"}},
		"suspect before dead":  {answer: []string{web + " A 10.42.2.5", web + " A 10.42.3.5"}, wantAnswer: []string{web + " A 10.42.2.5"}},
		"the dead alone":       {answer: []string{web + " A 10.42.3.5", web + " A 10.42.3.6"}},
		"one pod's name":       {answer: []string{pod("db-0") + " A 10.42.3.5"}},
		"IPv6":                 {answer: []string{web + " AAAA fd00:1::5", web + " AAAA fd00:3::5"}, wantAnswer: []string{web + " AAAA fd00:1::5"}},
		"as the client writes": {answer: []string{"WEB.shop.svc.cluster.local. A 10.42.1.5", web + " A 10.42.3.5"}, wantAnswer: []string{"WEB.shop.svc.cluster.local. A 10.42.1.5"}},
		"from elsewhere": {answer: []string{
			"ext.shop.svc.cluster.local. CNAME www.example.com.", "www.example.com. A 10.42.1.5", "www.example.com. A 10.42.3.5",
		}},
		"behind a CNAME": {
			answer:     []string{"ext.shop.svc.cluster.local. CNAME " + web, web + " A 10.42.1.5", web + " A 10.42.3.5"},
			wantAnswer: []string{"ext.shop.svc.cluster.local. CNAME " + web, web + " A 10.42.1.5"},
		},
		"SRV": {
			answer:     []string{srv("a"), srv("b"), srv("c")},
			extra:      []string{pod("a") + " A 10.42.1.5", pod("b") + " A 10.42.3.5", pod("c") + " A 10.42.2.5"},
			wantAnswer: []string{srv("a")},
			wantExtra:  []string{pod("a") + " A 10.42.1.5"},
		},
		"SRV, dual stack": {
			answer: []string{srv("a"), srv("b")},
			extra: []string{
				pod("a") + " A 10.42.1.5", pod("a") + " AAAA fd00:1::5", pod("b") + " A 10.42.3.5", pod("b") + " AAAA fd00:3::5",
			},
			wantAnswer: []string{srv("a")},
			wantExtra:  []string{pod("a") + " A 10.42.1.5", pod("a") + " AAAA fd00:1::5"},
		},
		"SRV, two pods of one name": {
			answer:     []string{srv("a"), srv("b")},
			extra:      []string{pod("a") + " A 10.42.1.5", pod("a") + " A 10.42.3.5", pod("b") + " A 10.42.1.6"},
			wantAnswer: []string{srv("a"), srv("b")},
			wantExtra:  []string{pod("a") + " A 10.42.1.5", pod("b") + " A 10.42.1.6"},
		},
		"SRV, the dead alone": {
			answer: []string{srv("a"), srv("b")},
			extra:  []string{pod("a") + " A 10.42.3.5", pod("b") + " A 10.42.3.6"},
		},
		"SRV without addresses": {answer: []string{srv("a"), srv("b")}},
		"SRV of a Service":      {answer: []string{"_http._tcp." + web + " SRV 0 100 80 " + web}, extra: []string{web + " A 10.43.0.9"}},
		"other types":           {answer: []string{web + " TXT here", web + " A 10.42.3.5"}, extra: []string{". TXT there"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &mdns.Msg{Answer: records(t, tc.answer...), Extra: records(t, tc.extra...)}
			m.Id, m.Rcode, m.Authoritative = 7, mdns.RcodeSuccess, true
			before := m.Copy()
			got := leastDoubted(m, plugin.Zones{"cluster.local."}, byThirdOctet)
			if m.String() != before.String() {
				t.Errorf("the message was changed:\n%v\nwas\n%v", m, before)
			}
			if tc.wantAnswer == nil {
				if got != m {
					t.Errorf("something was left out:\n%v", got)
				}
				return
			}
			if a, want := shown(got.Answer), shown(records(t, tc.wantAnswer...)); !slices.Equal(a, want) {
				t.Errorf("answer %q, want %q", a, want)
			}
			if a, want := shown(got.Extra), shown(records(t, tc.wantExtra...)); !slices.Equal(a, want) {
				t.Errorf("additional %q, want %q", a, want)
			}
			if got.Id != 7 || !got.Authoritative {
				t.Errorf("header %+v", got.MsgHdr)
			}
		})
	}
}

func TestRewriteMakesClusterAnswersWary(t *testing.T) {
	for corefile, want := range map[string]string{
		".:53 {\n kubernetes cluster.local in-addr.arpa {\n ttl 30\n }\n}":                    "wary cluster.local in-addr.arpa",
		"cluster.local:53 {\n kubernetes\n}":                                                  "wary",
		".:53 {\n kubernetes cluster.local\n errors\n}":                                       "wary cluster.local",
		".:53 {\n wary example.com\n kubernetes cluster.local\n}":                             "wary cluster.local",
		".:53 {\n wary cluster.local\n forward . 192.0.2.1\n}":                                "",
		"(k) {\n kubernetes cluster.local {\n ttl 30\n }\n}\n.:53 {\n import k\n cache 30\n}": "wary cluster.local",
	} {
		out, _, err := rewrite(corefile, nil, testSurroundings())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(words(parsed(t, out)[0].Tokens[waryName]), " "); got != want {
			t.Errorf("of %q: %q, want %q", corefile, got, want)
		}
	}
	order := directives()
	if !slices.IsSortedFunc([]string{"rewrite", waryName, "cache", "kubernetes"}, func(a, b string) int {
		return slices.Index(order, a) - slices.Index(order, b)
	}) || slices.Index(order, waryName) < 0 {
		t.Errorf("order of the plugins: %q", order)
	}
}

// TestInstanceIsWary asks a CoreDNS whose other plugins know pods of two nodes,
// through its cache.
func TestInstanceIsWary(t *testing.T) {
	port, name := int(loopback.Addr(t).Port()), "web.shop.svc.cluster.local."
	corefile := fmt.Sprintf(`.:%d {
    bind 127.0.0.1
    wary cluster.local in-addr.arpa
    cache 3600
    template IN SRV cluster.local {
        answer "{{ .Name }} 60 IN SRV 0 50 80 a.%[2]s"
        answer "{{ .Name }} 60 IN SRV 0 50 80 b.%[2]s"
        additional "a.%[2]s 60 IN A 10.42.1.5"
        additional "b.%[2]s 60 IN A 10.42.2.5"
        fallthrough
    }
    hosts {
        10.42.1.5 %[2]s outside.test
        10.42.2.5 %[2]s outside.test
        ttl 60
    }
}`, port, name)
	var doubted atomic.Pointer[netip.Prefix]
	i := newInstance(t.TempDir(), func(addr netip.Addr) int {
		if p := doubted.Load(); p != nil && p.Contains(addr) {
			return 1
		}
		return 0
	}, nil)
	t.Cleanup(func() {
		if err := i.stop(); err != nil {
			t.Error(err)
		}
	})
	expect := func(what, name string, kind uint16, want ...string) {
		t.Helper()
		client := &mdns.Client{Timeout: 5 * time.Second}
		answer, _, err := client.Exchange(new(mdns.Msg).SetQuestion(name, kind), fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, rr := range slices.Concat(answer.Answer, answer.Extra) {
			switch rr := rr.(type) {
			case *mdns.A:
				got = append(got, rr.A.String())
			case *mdns.SRV:
				got = append(got, rr.Target)
			}
			if ttl := rr.Header().Ttl; ttl < 50 || ttl > 60 {
				t.Errorf("%s: lifetime %d, the plugin said 60", what, ttl)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	if err := i.load(corefile); err != nil {
		t.Fatal(err)
	}
	a, b := "a."+name, "b."+name
	expect("at first", name, mdns.TypeA, "10.42.1.5", "10.42.2.5")
	expect("SRV at first", name, mdns.TypeSRV, "10.42.1.5", "10.42.2.5", a, b)
	second, both := netip.MustParsePrefix("10.42.2.0/24"), netip.MustParsePrefix("10.42.0.0/16")
	doubted.Store(&second)
	expect("from the cache", name, mdns.TypeA, "10.42.1.5")
	expect("SRV from the cache", name, mdns.TypeSRV, "10.42.1.5", a)
	expect("from elsewhere", "outside.test.", mdns.TypeA, "10.42.1.5", "10.42.2.5")
	if err := i.load("# again\n" + corefile); err != nil {
		t.Fatal(err)
	}
	expect("after a reload", name, mdns.TypeA, "10.42.1.5")
	doubted.Store(&both)
	expect("when all are doubted", name, mdns.TypeA, "10.42.1.5", "10.42.2.5")
	doubted.Store(nil)
	expect("back again", name, mdns.TypeA, "10.42.1.5", "10.42.2.5")
}
