// Command testbed runs clusters of moot on one machine and breaks them on
// purpose; see package testbed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed"
)

func main() {
	testbed.Reexec()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return
	case errors.As(err, &status):
		stop()
		os.Exit(int(status))
	}
	fmt.Fprintln(os.Stderr, "testbed:", err)
	stop()
	os.Exit(1)
}

// exitStatus is the status of a command on a node, to be passed on without a
// word.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// options are the flags of all commands.
type options struct {
	dir string
	bin string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "testbed",
		Short: "Run clusters of moot on this machine and break them on purpose",
		Long: `Run clusters of moot on this machine and break them on purpose.

Each node is a machine in small, in namespaces and cgroups of its own, on a
bridge with no uplink. Everything is below one directory; down removes it all.`,
		Example: `  sudo testbed up --nodes 3
  sudo testbed exec n1 -- kubectl get pods -A
  sudo testbed kill n1; sudo testbed start n1
  sudo testbed cut n1,n2 n3; sudo testbed heal
  sudo testbed down`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&o.dir, "dir", ".testbed", "directory of the cluster")
	root.PersistentFlags().StringVar(&o.bin, "bin", "", "directory of the binaries under test (default: where testbed itself is)")
	root.AddCommand(
		newUp(o), newDown(o), newStatus(o), newExec(o), newLogs(o), newDemo(o),
		newKill(o), newStop(o), newCrash(o), newStart(o), newPause(o), newResume(o),
		newCut(o), newHeal(o), newUnplug(o), newPlug(o),
		newImage(o), newRegistry(o),
	)
	return root
}

// config resolves the flags.
func (o *options) config() (testbed.Config, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return testbed.Config{}, err
	}
	bin := o.bin
	if bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return testbed.Config{}, err
		}
		bin = filepath.Dir(exe)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return testbed.Config{}, err
	}
	cfg := testbed.DefaultConfig(dir, bin)
	cfg.Progress = os.Stderr
	return cfg, nil
}

// cluster is a handle on the cluster in --dir.
func (o *options) cluster() (*testbed.Cluster, error) {
	cfg, err := o.config()
	if err != nil {
		return nil, err
	}
	return testbed.New(cfg)
}
