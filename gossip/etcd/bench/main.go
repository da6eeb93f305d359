// Command bench runs one load through the etcd API of this repository and
// through a real etcd, and prints what each took as Markdown.
//
// Each member of a server is a process of its own (this program started again),
// with a unix socket and a data directory on the same disk, both servers syncing
// every acknowledged write. With -members 3 the members of each are a cluster
// over loopback and TLS, and the load is on one of them, on etcd's leader; both
// then acknowledge what is on the disks of two. That all members hold the same in
// the end is checked. The runs of the two alternate, several rounds of each;
// the tables give medians over the rounds. The write load is what kube-apiserver
// sends: a transaction that puts a value of 1 to 5 KB if the key is still at the
// revision last seen, and reads it if not, with one watch open on everything
// written. The read load is lists of a few thousand such objects, in pages and
// streamed. With -floor a third server does what no server of this API can do
// without, and nothing else, which shows what the load generator and gRPC leave to
// be won on this machine.
//
//	go run ./gossip/etcd/bench -rounds 5 -time 3s -clients 1,16,64,256 -members 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
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
	members int
	floor   bool
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
	flags.StringVar(&s.profile, "profile", "", "write CPU profiles of our members to this file with their names added")
	flags.StringVar(&s.only, "only", "", "run only loads whose name contains this")
	flags.IntVar(&s.members, "members", 1, "members that each server has")
	flags.BoolVar(&s.floor, "floor", false, "measure also a server that does nothing but gRPC and syncing (with -only put and one member)")
	var m member
	flags.StringVar(&m.side, "serve", "", "be a member of a server: moot or etcd (used by the program itself)")
	flags.IntVar(&m.number, "member", 1, "which member to be (used by the program itself)")
	flags.StringVar(&m.socket, "socket", "", "socket to serve on (used by the program itself)")
	flags.Func("peer", "address of a member (used by the program itself)", func(text string) error {
		addr, err := netip.ParseAddrPort(text)
		m.peers = append(m.peers, addr)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if m.side != "" {
		m.dir, m.profile = s.dir, s.profile
		return m.serve(ctx)
	}
	if s.members < 1 {
		return fmt.Errorf("parse -members: %d is not positive", s.members)
	}
	if s.floor && (s.members > 1 || s.only != "put") {
		return errors.New("parse -floor: it has one member and takes puts: add -only put")
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
