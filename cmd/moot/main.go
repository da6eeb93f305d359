// Command moot is the whole of Moot in one program: `moot up` runs a node,
// everything else looks at or talks to one. Called by the name kubectl it is
// kubectl.
//
// Flags, environment and the configuration file are read here and nowhere
// else; the rooms below get values.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		os.Exit(runKubectl(os.Args[1:], false))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx)
	stop()
	os.Exit(code)
}

// exitError carries an exit status for an error that has already been shown.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func run(ctx context.Context) int {
	err := newRoot().ExecuteContext(ctx)
	var shown exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &shown):
		return int(shown)
	default:
		fmt.Fprintf(os.Stderr, "moot: %v\n", err)
		return 1
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "moot",
		Short: "Kubernetes without masters: every node is equal and runs the full stack",
		Example: `  sudo moot check                      # what this machine lacks, before anything starts
  sudo moot up                         # start a node in the foreground
  sudo moot token create               # let another machine join
  sudo moot kubectl get pods -A        # talk to it
  sudo moot image import app.tar       # bring an image without a registry
  sudo moot status                     # how node and cluster are
  sudo moot backup cluster.backup      # all of its state in one file`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	// Upstream's packages register a flag for every program that links them.
	if flag := pflag.Lookup("version"); flag != nil {
		flag.Hidden = true
	}
	root.AddCommand(newUp(), newKubectl(), newImage(), newStatus(), newCheck(), newVersion(),
		newToken(), newLeave(), newRemove(), newKeys(), newConflicts(), newBackup(), newRestore())
	return root
}
