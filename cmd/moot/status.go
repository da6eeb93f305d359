package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newStatus() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node is",
		Long:  "Show how this node is. The exit status is 1 when it is not ready.",
		Example: `  sudo moot status
  sudo moot status -o json | jq .ready`,
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
	fmt.Printf("store    revision %d, %.1f MiB on disk\n", s.Store.Revision, float64(s.Store.Bytes)/(1<<20))
	for _, d := range s.Degraded {
		fmt.Printf("without  %s\n", d)
	}
	for _, p := range s.Parts {
		fmt.Printf("part     %-22s ready after %.2fs\n", p.Name, p.Seconds)
	}
}
