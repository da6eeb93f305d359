package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed/caller"
)

// asker is a caller of either kind.
type asker interface {
	Run(ctx context.Context) error
	Peek() caller.Report
	Take() caller.Report
}

// ask is a client of a Service: "ask" makes a connection for each try, "hold"
// keeps some open. Several addresses are asked side by side. For each it prints
// a caller.Report as a line of JSON when it ends: after --tries or --for, by
// SIGTERM, or, when none of these nor --listen is given, at the end of its input.
// With --listen it reports while it runs, too, as a JSON list:
//
//	GET /peek   on the window so far
//	GET /take   on the window, and begins the next
//	GET /renew  as take, with connections that are held made anew
func ask(name string, args []string) error {
	cfg := caller.DefaultConfig("")
	if name == "hold" {
		cfg.Every = 100 * time.Millisecond
	}
	flags := flag.NewFlagSet("web "+name, flag.ExitOnError)
	flags.BoolVar(&cfg.UDP, "udp", false, "ask with datagrams")
	flags.DurationVar(&cfg.Every, "every", cfg.Every, "time between the starts of two tries")
	flags.DurationVar(&cfg.Timeout, "timeout", cfg.Timeout, "bound of one try")
	flags.DurationVar(&cfg.Slow, "slow", cfg.Slow, "when a success counts as troubled")
	flags.IntVar(&cfg.Flight, "flight", cfg.Flight, "bound of tries at once")
	flags.IntVar(&cfg.Tries, "tries", 0, "how many; 0 for no end")
	flags.IntVar(&cfg.From, "from", 0, "port to ask from; 0 for any")
	conns := flags.Int("conns", 1, "how many connections to hold")
	during := flags.Duration("for", 0, "how long; 0 for no end")
	listen := flags.String("listen", "", "where to report while it runs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return fmt.Errorf("%s: an address is wanted", name)
	}
	var askers []asker
	for _, address := range flags.Args() {
		cfg.Address = address
		a, err := newAsker(name, cfg, *conns)
		if err != nil {
			return err
		}
		askers = append(askers, a)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	switch {
	case *during > 0:
		time.AfterFunc(*during, stop)
	case cfg.Tries == 0 && *listen == "":
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	if *listen != "" {
		l, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, reports(askers)) }()
	}
	var all errgroup.Group
	for _, a := range askers {
		all.Go(func() error { return a.Run(ctx) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for _, a := range askers {
		if err := out.Encode(a.Take()); err != nil {
			return err
		}
	}
	return nil
}

func newAsker(name string, cfg caller.Config, conns int) (asker, error) {
	if name == "hold" {
		return caller.NewHolder(cfg, conns)
	}
	return caller.New(cfg)
}

func reports(askers []asker) http.Handler {
	mux := http.NewServeMux()
	each := func(path string, report func(asker) caller.Report) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			var all []caller.Report
			for _, a := range askers {
				all = append(all, report(a))
			}
			writeJSON(w, all)
		})
	}
	each("/peek", asker.Peek)
	each("/take", asker.Take)
	each("/renew", func(a asker) caller.Report {
		if h, ok := a.(*caller.Holder); ok {
			h.Renew()
		}
		return a.Take()
	})
	return mux
}
