package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/testbed"
)

// onNodes makes a command that does one thing to nodes.
func onNodes(o *options, name, short, long string, do func(*testbed.Cluster, context.Context, ...string) error) *cobra.Command {
	return &cobra.Command{
		Use:     name + " NODE...",
		Short:   short,
		Long:    long,
		Example: "  sudo testbed " + name + " n1 n2",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return do(c, cmd.Context(), args...)
		},
	}
}

func newKill(o *options) *cobra.Command {
	return onNodes(o, "kill", "Kill the daemons of nodes, and nothing else",
		"Send SIGKILL to the daemons of nodes and wait for their end. Pods live on.",
		(*testbed.Cluster).Kill)
}

func newStop(o *options) *cobra.Command {
	return onNodes(o, "stop", "Ask the daemons of nodes to end",
		"Send SIGTERM to the daemons of nodes, as a service manager does, and wait for their\nend. Pods live on.",
		(*testbed.Cluster).Stop)
}

func newCrash(o *options) *cobra.Command {
	return onNodes(o, "crash", "Take the power of nodes",
		`End every process of nodes at once, with their links and /run; the disks
stay. Writes that were never fsynced stay too, as they are in the page cache
of this machine: a real power loss may lose them.`,
		(*testbed.Cluster).Crash)
}

func newPause(o *options) *cobra.Command {
	return onNodes(o, "pause", "Freeze every process of nodes",
		"Freeze every process of nodes. Their kernel goes on: connections stay open.",
		(*testbed.Cluster).Pause)
}

func newResume(o *options) *cobra.Command {
	return onNodes(o, "resume", "Let paused nodes go on", "", (*testbed.Cluster).Resume)
}

func newUnplug(o *options) *cobra.Command {
	var bare bool
	cmd := &cobra.Command{
		Use:   "unplug NODE",
		Short: "Pull a node's cable",
		Long: `Pull a node's cable: it hears nobody, the bridge neither. A node that is off
boots unplugged: with its address and no default route, or, with --bare, without
an address, as a machine does that asks for one and hears nothing.`,
		Example: "  sudo testbed crash n1; sudo testbed unplug n1; sudo testbed start n1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Unplug(cmd.Context(), args[0], bare)
		},
	}
	cmd.Flags().BoolVar(&bare, "bare", false, "take the address and the routes as well")
	return cmd
}

func newPlug(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "plug NODE",
		Short: "Put a node's cable back, with address and default route",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Plug(cmd.Context(), args[0])
		},
	}
}

func newStart(o *options) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "start NODE...",
		Short: "Bring back what kill, stop or crash took, and wait until the nodes are Ready",
		Args:  cobra.MinimumNArgs(1),
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
			return c.Start(cmd.Context(), args...)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long a node may take to become Ready")
	return cmd
}

func newCut(o *options) *cobra.Command {
	var oneWay bool
	cmd := &cobra.Command{
		Use:   "cut NODE,... NODE,...",
		Short: "Drop every frame between two sets of nodes",
		Long: `Drop every frame between two sets of nodes, beside earlier cuts: of open
connections as well. Returns when in effect. With --one-way the second set no
longer hears the first, and the first still hears the second.`,
		Example: "  sudo testbed cut n1,n2 n3",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			do := c.Cut
			if oneWay {
				do = c.CutOneWay
			}
			return do(cmd.Context(), strings.Split(args[0], ","), strings.Split(args[1], ","))
		},
	}
	cmd.Flags().BoolVar(&oneWay, "one-way", false, "drop what the first set sends to the second alone")
	return cmd
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
