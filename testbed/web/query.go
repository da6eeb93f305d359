package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// query asks for records of a name as a C library does: by the servers and search
// domains of /etc/resolv.conf, one candidate after the other until one has
// records. It prints what it finds, a line each, sorted; records that come along
// begin with "and". A name without records of the type prints nothing, one that
// does not exist is an error. PTR takes an address for a name.
func query(args []string) error {
	flags := flag.NewFlagSet("web query", flag.ExitOnError)
	server := flags.String("server", "", "ask this address instead")
	timeout := flags.Duration("timeout", 2*time.Second, "bound of one try")
	tries := flags.Int("tries", 2, "how often an answer is waited for")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errors.New("query: needs a type and a name")
	}
	kind, ok := dns.StringToType[flags.Arg(0)]
	if !ok {
		return fmt.Errorf("query: no type %s", flags.Arg(0))
	}
	name := flags.Arg(1)
	if addr, err := netip.ParseAddr(name); err == nil && kind == dns.TypePTR {
		if name, err = dns.ReverseAddr(addr.String()); err != nil {
			return err
		}
	}
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if *server != "" {
		conf.Servers, conf.Search = []string{*server}, nil
	}
	r := resolver{client: &dns.Client{Timeout: *timeout}, conf: conf, tries: *tries}
	lines, err := r.find(kind, name)
	for _, line := range lines {
		fmt.Println(line)
	}
	return err
}

type resolver struct {
	client *dns.Client
	conf   *dns.ClientConfig
	tries  int
}

func (r *resolver) find(kind uint16, name string) ([]string, error) {
	there := false
	for _, candidate := range r.conf.NameList(name) {
		m, err := r.ask(new(dns.Msg).SetQuestion(candidate, kind))
		if err != nil {
			return nil, err
		}
		switch {
		case m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0:
			return lines(m), nil
		case m.Rcode == dns.RcodeSuccess:
			there = true
		case m.Rcode != dns.RcodeNameError:
			return nil, fmt.Errorf("query %s: %s", candidate, dns.RcodeToString[m.Rcode])
		}
	}
	if !there {
		return nil, fmt.Errorf("query %s: no such name", name)
	}
	return nil, nil
}

func (r *resolver) ask(question *dns.Msg) (*dns.Msg, error) {
	var errs []error
	for range r.tries {
		for _, server := range r.conf.Servers {
			m, _, err := r.client.Exchange(question, net.JoinHostPort(server, r.conf.Port))
			if err == nil && m.Truncated {
				tcp := &dns.Client{Net: "tcp", Timeout: r.client.Timeout}
				m, _, err = tcp.Exchange(question, net.JoinHostPort(server, r.conf.Port))
			}
			if err == nil {
				return m, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, fmt.Errorf("query %s: %w", question.Question[0].Name, errors.Join(errs...))
}

func lines(m *dns.Msg) []string {
	var out []string
	add := func(prefix string, rrs []dns.RR) {
		for _, rr := range rrs {
			h := rr.Header()
			if h.Rrtype == dns.TypeOPT {
				continue
			}
			value := strings.TrimPrefix(rr.String(), h.String())
			if srv, ok := rr.(*dns.SRV); ok { // how much each weighs is not the matter
				value = fmt.Sprint(srv.Port, " ", srv.Target)
			}
			out = append(out, prefix+dns.TypeToString[h.Rrtype]+" "+value)
		}
	}
	add("", m.Answer)
	add("and ", m.Extra)
	slices.Sort(out)
	return out
}

// nameserver answers any question for an address with the same one, until it is
// asked to end.
func nameserver(args []string) error {
	if len(args) != 2 {
		return errors.New("nameserver: needs where to listen and what to answer")
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	server := &dns.Server{Addr: args[0], Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if question := q.Question[0]; question.Qtype == dns.TypeA {
			header := dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}
			m.Answer = []dns.RR{&dns.A{Hdr: header, A: addr.AsSlice()}}
		}
		_ = w.WriteMsg(m) // who asked asks again
	})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-stop:
		return nil
	}
}
