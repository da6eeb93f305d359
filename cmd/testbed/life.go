package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/mootkube/moot/testbed"
)

func newUp(o *options) *cobra.Command {
	var (
		nodes      int
		daemon     string
		args       []string
		standalone bool
		timeout    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and wait until every node is Ready",
		Long: `Start a cluster and wait until every node is Ready: the first node founds it,
the others join it side by side with a token that the first has made.`,
		Example: `  sudo testbed up --nodes 3
  sudo testbed up --moot-arg=--kubelet-arg=max-pods=20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.config()
			if err != nil {
				return err
			}
			cfg.DaemonArgs, cfg.Standalone, cfg.ReadyTimeout = args, standalone, timeout
			if daemon != "" {
				cfg.Daemon, cfg.CheckNode = strings.Fields(daemon), nil
			}
			c, err := testbed.New(cfg)
			if err != nil {
				return err
			}
			return c.Up(cmd.Context(), nodes)
		},
	}
	f := cmd.Flags()
	f.IntVar(&nodes, "nodes", 1, "how many nodes")
	f.StringArrayVar(&args, "moot-arg", nil, "flag for moot up on every node (repeat)")
	f.StringVar(&daemon, "daemon", "", `command to run instead of "moot up", its word taken for ready`)
	f.BoolVar(&standalone, "standalone", false, "nodes that do not join each other")
	f.DurationVar(&timeout, "timeout", 5*time.Minute, "how long a node may take to become Ready")
	return cmd
}

func newDown(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and leave nothing behind, disks and logs included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Down(cmd.Context())
		},
	}
}

func newExec(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARG...]",
		Short: "Run a command on a node",
		Long: `Run a command in all namespaces of a node and a cgroup leaf of its own, with
KUBECONFIG set and the binaries under test first on PATH. Input, output,
signals and the exit status are passed through.`,
		Example: `  sudo testbed exec n1 -- kubectl get pods -A
  sudo testbed exec n1 -- kubectl apply -f - <app.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("usage: testbed exec NODE -- COMMAND [ARG...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			wd, err := os.Getwd()
			if err != nil {
				wd = "/"
			}
			signals := make(chan os.Signal, 16)
			signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
			defer signal.Stop(signals)
			pass := (<-chan os.Signal)(signals)
			if term.IsTerminal(int(os.Stdin.Fd())) {
				// The terminal sends them to the command as well.
				pass = without(cmd.Context(), signals, unix.SIGINT, unix.SIGQUIT)
			}
			// Not the command's context: signals end the command, not us.
			code, err := c.Exec(context.WithoutCancel(cmd.Context()), args[0], testbed.Command{
				Argv: args[1:], Dir: wd, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: pass,
			})
			if err != nil {
				return err
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
}

// without passes signals on but for those in drop, until the process ends.
func without(_ context.Context, in <-chan os.Signal, drop ...os.Signal) <-chan os.Signal {
	out := make(chan os.Signal, cap(in))
	go func() {
	next:
		for s := range in {
			for _, d := range drop {
				if s == d {
					continue next
				}
			}
			out <- s
		}
	}()
	return out
}

func newLogs(o *options) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs NODE",
		Short: "Print what the daemon of a node has said",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Logs(cmd.Context(), args[0], os.Stdout, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what it says next")
	return cmd
}

func newStatus(o *options) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes, cuts and registries of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			switch output {
			case "":
				return printStatus(os.Stdout, st)
			case "json":
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			}
			return fmt.Errorf("unknown output %q: json is possible", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func printStatus(out io.Writer, st testbed.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tADDRESS\tPOWER\tDAEMON\tPID\tBOOTS\tSAYS")
	for _, n := range st.Nodes {
		daemon, pid := "-", "-"
		switch {
		case n.Ready:
			daemon = "ready"
		case n.PID != 0:
			daemon = "starting"
		case n.Exit != "":
			daemon = "ended"
		}
		if n.PID != 0 {
			pid = fmt.Sprint(n.PID)
		}
		says := n.Text
		if n.Exit != "" {
			says = n.Exit
		}
		power := n.Power
		if n.Link != "" {
			power += ", " + n.Link
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Name, n.Address, power, daemon, pid, n.Boots, says)
	}
	for _, r := range st.Registries {
		fmt.Fprintf(w, "registry %s\t%s\t%s\n", r.Name, r.Address, r.Host)
	}
	for _, c := range st.Cuts {
		fmt.Fprintf(w, "cut\t%s | %s\n", c[0], c[1])
	}
	for _, c := range st.OneWay {
		fmt.Fprintf(w, "cut\t%s > %s\n", c[0], c[1])
	}
	return w.Flush()
}
