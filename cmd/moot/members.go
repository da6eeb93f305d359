package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newLeave() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this node out of the cluster",
		Long: `Take this node out of the cluster for good: another member has everything it
has, leadership is handed over, its Node goes, its pods are made anew elsewhere,
and the daemon ends. To come back, remove its data directory and join again
with a token. To stop a node for a while, stop the daemon instead.`,
		Example: "  sudo moot leave",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := opts.client().Leave(cmd.Context(), say); err != nil {
				return err
			}
			if err := node.AwaitStop(cmd.Context(), opts.DataDir); err != nil {
				return err
			}
			fmt.Printf("left the cluster; what is in %s is this node's alone now\n", opts.DataDir)
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir", "data-dir")
	return cmd
}

func newRemove() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a dead member out of the cluster",
		Long: `Take a member that will not come back out of the cluster: its name and number
are free again, deletes need not be remembered for it, and its Node goes. A
living member is refused; run moot leave on it instead. A removed machine that
comes back regardless is refused until it joins again with an empty data
directory.`,
		Example: "  sudo moot remove n3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := opts.client().Remove(cmd.Context(), args[0], say); err != nil {
				return err
			}
			fmt.Printf("removed %s\n", args[0])
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	return cmd
}

// say passes on what the daemon is doing.
func say(text string) { fmt.Fprintln(os.Stderr, text) }
