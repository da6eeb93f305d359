package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newVersion() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of Moot and of what is built into it",
		Example: "  moot version\n  moot version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := node.ReadVersions()
			switch output {
			case "json":
				return printJSON(v)
			case "":
				fmt.Printf("moot %s (kubernetes %s, containerd %s, coredns %s, %s)\n",
					v.Moot, v.Kubernetes, v.Containerd, v.CoreDNS, v.Go)
				return nil
			default:
				return fmt.Errorf("-o %q: must be json, or left out", output)
			}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for a machine to read")
	return cmd
}
