package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newStatus() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node and its cluster are",
		Long: `Show how this node is and what it knows of the cluster: members, leader, who
tails whom, how far each is behind the other in changes, and what merges lost.
The exit status is 1 when this node is not ready.`,
		Example: `  sudo moot status
  sudo moot status -o json | jq '.leader, .digest, .members[].name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			s, err := node.FetchStatus(cmd.Context(), opts.StatusSocket())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				if err := printJSON(s); err != nil {
					return err
				}
			case "":
				printStatus(s)
			default:
				return fmt.Errorf("-o %q: must be json, or left out", output)
			}
			if !s.Ready {
				return exitError(1)
			}
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for a machine to read")
	return cmd
}

func printStatus(s node.Status) {
	state := "ready"
	if !s.Ready {
		state = "not ready: " + s.Reason
	}
	fmt.Printf("node     %s (%s), %s\n", s.Node, s.Address, state)
	fmt.Printf("version  %s, kubernetes %s\n", s.Versions.Moot, s.Versions.Kubernetes)
	fmt.Printf("up       %s\n", time.Since(s.Started).Round(time.Second))
	fmt.Printf("store    revision %d, %.1f MiB on disk, digest %s\n", s.Store.Revision, float64(s.Store.Bytes)/(1<<20), orDash(s.Digest))
	for _, d := range s.Degraded {
		fmt.Printf("without  %s\n", d)
	}
	if s.Services.Mode != "" {
		why := ""
		if s.Services.Why != "" {
			why = ", because of " + s.Services.Why
		}
		fmt.Printf("services %s%s\n", s.Services.Mode, why)
	}
	for _, p := range s.Parts {
		fmt.Printf("part     %-22s ready after %.2fs\n", p.Name, p.Seconds)
	}
	printCluster(s)
}

// printCluster shows what this node knows of the others.
func printCluster(s node.Status) {
	live := 0
	for i := range s.Members {
		if s.Members[i].Live() {
			live++
		}
	}
	fmt.Printf("cluster  %s, %d of %d members live\n", orDash(s.Cluster), live, len(s.Members))
	leader := "nobody that this node knows of"
	if s.Leader != "" {
		leader = s.Leader
		if !s.TermSince.IsZero() {
			leader += fmt.Sprintf(", for %s", time.Since(s.TermSince).Round(time.Second))
		}
	}
	fmt.Printf("leader   %s\n", leader)
	fmt.Printf("writes   %d acknowledged with a peer, %d alone, %d of them after waiting for one; %d times a peer was passed over\n",
		s.Acks.Peer, s.Acks.Alone+s.Acks.TimedOut, s.Acks.TimedOut, s.Acks.PassedOver)
	if s.Conflicts > 0 {
		fmt.Printf("lost     %d fields or objects in merges; moot conflicts lists them\n", s.Conflicts)
	}
	if s.Rotation != nil {
		fmt.Printf("keys     %s\n", rotationLine(*s.Rotation))
	}
	printMembers(s.Members)
}

func printMembers(members []node.MemberStatus) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nMEMBER\tADDRESS\tSTATE\tSINCE\tTAILS\tBEHIND\tAHEAD\tCLOCK\tVERSION")
	for i := range members {
		m := &members[i]
		tails, behind, ahead, clock := "-", "-", "-", "-"
		if !m.Self {
			tails = tailing(m)
			behind, ahead = fmt.Sprint(m.Behind), fmt.Sprint(m.Ahead)
			if m.OffsetBound > 0 {
				clock = fmt.Sprintf("%+d ms", m.ClockOffset.Milliseconds())
			}
		}
		since := "-"
		if !m.Since.IsZero() {
			since = time.Since(m.Since).Round(time.Second).String()
		}
		name := m.Name
		if m.Self {
			name += " (this)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, m.Addr, m.State, since, tails, behind, ahead, clock, orDash(m.Version))
	}
	_ = w.Flush() // as every other line printed here
	for i := range members {
		m := &members[i]
		if m.Differs {
			fmt.Printf("BUG      %s has other content with the same changes: %s\n", m.Name, m.Digest)
		} else if m.Error != "" {
			fmt.Printf("note     %s: %s\n", m.Name, m.Error)
		}
		if m.ClocksApart() {
			fmt.Printf("note     %s: its clock and this node's are %s apart; set them by a time server\n", m.Name, m.ClockOffset.Abs().Round(time.Second))
		}
	}
}

// tailing says who gets whose changes: this node the member's, or the opposite.
func tailing(m *node.MemberStatus) string {
	switch {
	case m.Follows && m.Followed:
		return "both ways"
	case m.Follows:
		return "from it"
	case m.Followed:
		return "to it"
	default:
		return "no"
	}
}
