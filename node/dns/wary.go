package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	mdns "github.com/miekg/dns"
)

// waryName is the plugin's directive. The daemon puts it into a Corefile, nobody
// has to.
const waryName = "wary"

// wary is the CoreDNS plugin that leaves pods on nodes which this node does not
// hear from out of answers about the cluster. It stands in front of the cache, so
// that what was cached before is looked at too, and behind the plugins that
// rewrite questions.
type wary struct {
	next  plugin.Handler
	zones plugin.Zones // of the kubernetes plugin in the same server block
	doubt func(netip.Addr) int
}

// Name is part of plugin.Handler.
func (w *wary) Name() string { return waryName }

// ServeDNS is part of plugin.Handler.
func (w *wary) ServeDNS(ctx context.Context, to mdns.ResponseWriter, question *mdns.Msg) (int, error) {
	if w.zones.Matches(question.Question[0].Name) != "" {
		to = &sifter{ResponseWriter: to, zones: w.zones, doubt: w.doubt}
	}
	return plugin.NextOrFailure(waryName, w.next, ctx, to, question)
}

// sifter is the writer of one answer.
type sifter struct {
	mdns.ResponseWriter
	zones plugin.Zones
	doubt func(netip.Addr) int
}

// WriteMsg is part of dns.ResponseWriter.
func (s *sifter) WriteMsg(m *mdns.Msg) error {
	return s.ResponseWriter.WriteMsg(leastDoubted(m, s.zones, s.doubt))
}

// leastDoubted leaves out of an answer the addresses in zones that are doubted
// more than others of the same name, and the SRV records that lead to them. So
// where all are doubted alike they stay: a doubtful address is better than none.
// It changes nothing in m, which the cache may hold, and returns it where
// nothing is to be left out.
func leastDoubted(m *mdns.Msg, zones plugin.Zones, doubt func(netip.Addr) int) *mdns.Msg {
	ofRecord := func(rr mdns.RR) int {
		addr, ok := addressOf(rr)
		if !ok || zones.Matches(rr.Header().Name) == "" {
			return 0
		}
		return doubt(addr)
	}
	extra, _ := sift(m.Extra, ofRecord)
	targets := map[string]int{} // by name, what its least doubted address is
	for _, rr := range extra {
		d, name := ofRecord(rr), nameOf(rr)
		if least, seen := targets[name]; !seen || d < least {
			targets[name] = d
		}
	}
	answer, dropped := sift(m.Answer, func(rr mdns.RR) int {
		if srv, ok := rr.(*mdns.SRV); ok {
			return targets[strings.ToLower(srv.Target)]
		}
		return ofRecord(rr)
	})
	unwanted := map[string]bool{}
	for _, rr := range dropped {
		if srv, ok := rr.(*mdns.SRV); ok {
			unwanted[strings.ToLower(srv.Target)] = true
		}
	}
	extra = slices.DeleteFunc(extra, func(rr mdns.RR) bool { return unwanted[nameOf(rr)] })
	if len(dropped) == 0 && len(extra) == len(m.Extra) {
		return m
	}
	out := *m
	out.Answer, out.Extra = answer, extra
	return &out
}

// sift takes out of records those that are doubted more than another of the same
// name and type. Both results are slices of their own.
func sift(records []mdns.RR, doubt func(mdns.RR) int) (kept, dropped []mdns.RR) {
	type set struct {
		name string
		kind uint16
	}
	setOf := func(rr mdns.RR) set { return set{nameOf(rr), rr.Header().Rrtype} }
	doubts, least := make([]int, len(records)), map[set]int{}
	for i, rr := range records {
		doubts[i] = doubt(rr) // once: it may be another a moment later
		if have, seen := least[setOf(rr)]; !seen || doubts[i] < have {
			least[setOf(rr)] = doubts[i]
		}
	}
	for i, rr := range records {
		if doubts[i] > least[setOf(rr)] {
			dropped = append(dropped, rr)
		} else {
			kept = append(kept, rr)
		}
	}
	return kept, dropped
}

func nameOf(rr mdns.RR) string { return strings.ToLower(rr.Header().Name) }

func addressOf(rr mdns.RR) (addr netip.Addr, ok bool) {
	switch rr := rr.(type) {
	case *mdns.A:
		addr, ok = netip.AddrFromSlice(rr.A)
	case *mdns.AAAA:
		addr, ok = netip.AddrFromSlice(rr.AAAA)
	}
	return addr.Unmap(), ok
}

// directives are the names that a Corefile may use, in the order in which their
// plugins see a question.
func directives() []string {
	if slices.Contains(dnsserver.Directives, waryName) {
		return dnsserver.Directives
	}
	return slices.Insert(slices.Clone(dnsserver.Directives), slices.Index(dnsserver.Directives, "cache"), waryName)
}

// waryPlugin is the plugin's entry in CoreDNS's registry, which is the process's
// and makes plugins of nothing but the words of a Corefile.
var waryPlugin struct { //nolint:gochecknoglobals // see above
	once  sync.Once
	err   error
	doubt atomic.Pointer[func(netip.Addr) int]
}

// registerWary makes the next load of a Corefile use doubt. No server may be
// starting meanwhile.
func registerWary(doubt func(netip.Addr) int) error {
	waryPlugin.doubt.Store(&doubt)
	waryPlugin.once.Do(func() {
		if waryPlugin.err = dnsserver.SetDirectives(directives()); waryPlugin.err == nil {
			plugin.Register(waryName, setupWary)
		}
	})
	return waryPlugin.err
}

func setupWary(c *caddy.Controller) error {
	c.Next() // the directive itself
	zones := plugin.OriginsFromArgsOrServerBlock(c.RemainingArgs(), c.ServerBlockKeys)
	doubt := *waryPlugin.doubt.Load()
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		return &wary{next: next, zones: zones, doubt: doubt}
	})
	return nil
}
