package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/testbed"
)

// onNode makes a command that does one thing to one node.
func onNode(o *options, name, short, long string, do func(*testbed.Cluster, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     name + " NODE",
		Short:   short,
		Long:    long,
		Example: "  sudo testbed " + name + " n1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return do(c, cmd.Context(), args[0])
		},
	}
}

func newKill(o *options) *cobra.Command {
	return onNode(o, "kill", "Kill the daemon of a node, and nothing else",
		"Send SIGKILL to the daemon of a node and wait for its end. Pods live on.",
		(*testbed.Cluster).Kill)
}

func newCrash(o *options) *cobra.Command {
	return onNode(o, "crash", "Take the power of a node",
		`End every process of a node at once, with its link and its /run; the disk
stays. Writes that were never fsynced stay too, as they are in the page cache
of this machine: a real power loss may lose them.`,
		(*testbed.Cluster).Crash)
}

func newPause(o *options) *cobra.Command {
	return onNode(o, "pause", "Freeze every process of a node",
		"Freeze every process of a node. Its kernel goes on: connections stay open.",
		(*testbed.Cluster).Pause)
}

func newResume(o *options) *cobra.Command {
	return onNode(o, "resume", "Let a paused node go on", "", (*testbed.Cluster).Resume)
}

func newStart(o *options) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "start NODE",
		Short: "Bring back what kill or crash took, and wait until the node is Ready",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := o.config()
			if err != nil {
				return err
			}
			cfg.ReadyTimeout = timeout
			c, err := testbed.New(cfg)
			if err != nil {
				return err
			}
			return c.Start(cmd.Context(), args[0])
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long the node may take to become Ready")
	return cmd
}

func newCut(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "cut NODE,... NODE,...",
		Short:   "Drop every frame between two sets of nodes",
		Long:    "Drop every frame between two sets of nodes, beside earlier cuts. Returns when in effect.",
		Example: "  sudo testbed cut n1,n2 n3",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Cut(cmd.Context(), strings.Split(args[0], ","), strings.Split(args[1], ","))
		},
	}
}

func newHeal(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "heal",
		Short: "Undo all cuts",
		Long:  "Undo all cuts. Returns when nodes that were cut off reach each other.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Heal(cmd.Context())
		},
	}
}
