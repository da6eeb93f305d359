package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
	"github.com/mootkube/moot/node/pki/rotation"
)

func newKeys() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "Rotate the keys that members recognise each other by",
		Example: "  sudo moot keys rotate\n  sudo moot keys status",
	}
	cmd.AddCommand(newKeysRotate(), newKeysStatus())
	return cmd
}

func newKeysRotate() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var wait bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the members' authority, certificates and gossip key without downtime",
		Long: `Replace what members recognise each other by: the authority of their
certificates, every member's certificate, and the gossip key. All members first
learn to accept the new, then use it, then forget the old, each step once every
registered member has taken the one before. A member that is away, and a machine
that was let in and has not started yet, holds the rotation up until it is there
or was removed (moot remove). One that was removed joins again with a new token
and an empty data directory. Join tokens made before are useless afterwards.

Not replaced: the Kubernetes authorities and the service account key, which
kubeconfigs, pods and issued tokens depend on. The certificates that nodes issue
from them are renewed by themselves, at a start in the second half of their
three years. Rotation does not lock out one who has the old keys while it
happens: such a one is a member. Remove a lost member first.`,
		Example: `  sudo moot keys rotate
  sudo moot keys rotate --wait=false && sudo moot keys status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			s, err := opts.client().RotateKeys(cmd.Context())
			if err != nil {
				return err
			}
			if !wait {
				printRotation(s)
				return nil
			}
			return waitForRotation(cmd.Context(), opts.client(), s)
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until the rotation has ended; it goes on without")
	return cmd
}

// waitForRotation prints each stage, and every two seconds who is waited for.
func waitForRotation(ctx context.Context, client node.Client, s rotation.Status) error {
	id, last, told := s.ID, "", time.Now()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		line := rotationLine(s)
		if stage, _, _ := strings.Cut(line, ","); stage != last || time.Since(told) >= 2*time.Second {
			fmt.Fprintln(os.Stderr, line)
			last, told = stage, time.Now()
		}
		if s.ID != id || s.Stage == rotation.StageDone {
			fmt.Println("rotated; join tokens made before are useless now")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stopped waiting; the rotation goes on, see moot keys status: %w", context.Cause(ctx))
		case <-tick.C:
		}
		var err error
		if s, err = client.Rotation(ctx); err != nil {
			return err
		}
	}
}

func newKeysStatus() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how far the last rotation is",
		Example: "  sudo moot keys status\n  sudo moot keys status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			s, err := opts.client().Rotation(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(s)
			}
			printRotation(s)
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	addOutputFlag(cmd.Flags(), &output)
	return cmd
}

func printRotation(s rotation.Status) {
	if s.ID == "" {
		fmt.Println("no rotation yet")
		return
	}
	fmt.Printf("%s; begun %s by %s\n", rotationLine(s), s.Started.Local().Format(time.DateTime), s.By)
}

func rotationLine(s rotation.Status) string {
	line := map[rotation.Stage]string{
		rotation.StageTrust: "stage 1 of 3: members learn to accept the new keys",
		rotation.StageIssue: "stage 2 of 3: members change to the new keys",
		rotation.StageDrop:  "stage 3 of 3: members forget the old keys",
		rotation.StageDone:  "all members use the new keys alone",
	}[s.Stage]
	if len(s.Waiting) > 0 {
		line += ", waiting for " + strings.Join(s.Waiting, ", ")
	}
	return line
}
