// Command bench runs one load through the etcd API of this repository and
// through a real etcd, and prints what each took as Markdown.
//
// Each server is a process of its own (this program started again), with a
// unix socket and a data directory on the same disk, both syncing every
// acknowledged write. The runs of the two alternate, several rounds of each;
// the tables give medians over the rounds. The write load is what kube-apiserver
// sends: a transaction that puts a value of 1 to 5 KB if the key is still at the
// revision last seen, and reads it if not, with one watch open on everything
// written. The read load is lists of a few thousand such objects, in pages and
// streamed.
//
//	go run ./gossip/etcd/bench -rounds 5 -time 3s -clients 1,16,64,256
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type settings struct {
	dir     string
	rounds  int
	period  time.Duration
	clients []int
	objects int
	profile string
	only    string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var s settings
	flags.StringVar(&s.dir, "dir", "", "directory on the disk to measure (default a new one under the working directory)")
	flags.IntVar(&s.rounds, "rounds", 3, "rounds of each load on each server")
	flags.DurationVar(&s.period, "time", 3*time.Second, "how long each load runs in a round")
	clients := flags.String("clients", "1,16,64,256", "numbers of clients writing at a time")
	flags.IntVar(&s.objects, "objects", 5000, "objects that the lists are of")
	flags.StringVar(&s.profile, "profile", "", "write a CPU profile of our server to this file")
	flags.StringVar(&s.only, "only", "", "run only loads whose name contains this")
	serve := flags.String("serve", "", "be a server: moot or etcd (used by the program itself)")
	socket := flags.String("socket", "", "socket to serve on (used by the program itself)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *serve != "" {
		return serveAs(ctx, *serve, s.dir, *socket, s.profile)
	}
	for field := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return fmt.Errorf("parse -clients: %q is not a positive number", field)
		}
		s.clients = append(s.clients, n)
	}
	if s.dir == "" {
		dir, err := os.MkdirTemp(".", ".bench")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		s.dir = dir
	}
	return compare(ctx, s)
}
