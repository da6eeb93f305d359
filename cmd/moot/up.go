package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newUp() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a node in the foreground",
		Long: `Start a node in the foreground: store, Kubernetes API, controllers, scheduler,
containerd and kubelet in this one process. It prints a line as each part is
ready, then READY. Ctrl-C or SIGTERM stops the daemon; pods run on, and the
next moot up takes them over.

The first machine begins a cluster and prints the command that others join it
with, but not into systemd's journal. A machine that is a member already ignores
--join and the token.

Every flag can also stand in ` + defaultConfigFile + ` by the same name
without the dashes; the command line wins.`,
		Example: `  sudo moot up
  sudo moot up --node-ip 192.0.2.10 --data-dir /srv/moot
  sudo moot up --join 192.0.2.10:7443 --token moot1.…     # become a member
  sudo moot up --join 192.0.2.10:7443 --token-file /etc/moot/token
  sudo moot up --kubelet-arg max-pods=50 --apiserver-arg audit-log-path=/var/log/audit.log

  # ` + defaultConfigFile + `
  node-ip: 192.0.2.11
  join: 192.0.2.10:7443
  token-file: /etc/moot/token
  kubelet-arg: [max-pods=50]`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			log, err := opts.logger(os.Stderr)
			if err != nil {
				return err
			}
			if err := opts.loadToken(); err != nil {
				return err
			}
			opts.Token = hideToken(os.Args, opts.Token)
			opts.ShowToken = !inJournal(os.Stdout, os.Getenv("JOURNAL_STREAM"))
			environment := os.Environ()
			notifier, err := node.TakeNotifier()
			if err != nil {
				return err
			}
			if err := opts.Complete(); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			var running sync.WaitGroup
			running.Go(func() { paceGC(ctx) })
			defer running.Wait()
			defer cancel()
			began := time.Now()
			n, err := node.New(opts.Config, log, func(e node.Progress) { printProgress(e, began) }, notifier)
			if err != nil {
				return err
			}
			err = n.Run(ctx)
			if errors.Is(err, node.ErrStartAgain) {
				return startAgain(err, time.Since(began), environment, log)
			}
			return err
		},
	}
	opts.addFlags(cmd.Flags())
	return cmd
}

// inJournal says whether the output goes to systemd's journal, by what
// systemd.exec(5) says of JOURNAL_STREAM: programs that a service starts inherit
// it whatever their output is.
func inJournal(output *os.File, stream string) bool {
	info, err := output.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

func printProgress(e node.Progress, began time.Time) {
	if e.Ready {
		fmt.Printf("READY  %s after %s\n", e.Name, time.Since(began).Round(10*time.Millisecond))
		for _, line := range e.Notes {
			fmt.Printf("       %s\n", line)
		}
		return
	}
	fmt.Printf("%6.2fs  %-22s %s\n", time.Since(began).Seconds(), e.Name, e.Took.Round(time.Millisecond))
	for _, line := range e.Notes {
		fmt.Printf("         %s\n", line)
	}
}

// startsVariable counts, for the program that replaces this one, how often that
// has happened; maxStarts ends a loop.
const (
	startsVariable = "MOOT_STARTS"
	maxStarts      = 5
	loopWithin     = 10 * time.Minute // a start that lasted longer is not part of a loop
)

// startAgain replaces this program by itself, as a service manager would: the
// daemon has stopped, and the next start does what this one could not.
func startAgain(cause error, ran time.Duration, environment []string, log *slog.Logger) error {
	starts, _ := strconv.Atoi(os.Getenv(startsVariable)) // absent: the first time
	if ran > loopWithin {
		starts = 0
	}
	if starts++; starts > maxStarts {
		return fmt.Errorf("started again %d times: %w", maxStarts, cause)
	}
	program, err := os.Executable()
	if err != nil {
		return errors.Join(cause, err)
	}
	log.Warn("starting again", "err", cause)
	environment = slices.DeleteFunc(environment, func(v string) bool { return strings.HasPrefix(v, startsVariable+"=") })
	environment = append(environment, fmt.Sprintf("%s=%d", startsVariable, starts))
	return errors.Join(cause, syscall.Exec(program, os.Args, environment))
}
