package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newCheck() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what this machine's kernel and host lack, before anything starts",
		Long: `Look at the kernel, the tools, the ports and the disk that a node needs.
Nothing is changed. The exit status is 1 when a node could not start.`,
		Example: `  sudo moot check
  sudo moot check -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			findings := node.Check(opts.Config)
			switch output {
			case "json":
				if err := printJSON(findings); err != nil {
					return err
				}
			case "":
				for _, f := range findings {
					fmt.Printf("%-5s %-15s %s\n", f.Severity, f.Name, f.Detail)
					if f.Hint != "" {
						fmt.Printf("      %-15s → %s\n", "", f.Hint)
					}
				}
			default:
				return fmt.Errorf("-o %q: must be json, or left out", output)
			}
			if node.Failed(findings) != nil {
				return exitError(1)
			}
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "data-dir", "state-dir", "api-port")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for a machine to read")
	return cmd
}

func printJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	fmt.Println(string(data))
	return nil
}
