package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newConflicts() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "List what merges of concurrent changes did not keep",
		Long: `List the fields and objects that lost when changes made on both sides of a cut
were merged, oldest first: the newer write of a field stays, the older of two
objects of one name does, and what was deleted stays deleted. -o json has the
values that were lost, whole.`,
		Example: `  sudo moot conflicts
  sudo moot conflicts -o json | jq '.[] | {key, path, lost, kept}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			list, err := opts.client().Conflicts(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(list)
			}
			if len(list) == 0 {
				fmt.Println("no conflicts")
				return nil
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "WRITTEN\tOBJECT\tFIELD\tRULE\tLOST\tKEPT")
			for _, c := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.LostAt.Local().Format(time.DateTime), c.Key, orDash(c.Path), c.Rule, shorten(c.Lost), shorten(c.Kept))
			}
			return w.Flush()
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	addOutputFlag(cmd.Flags(), &output)
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shorten makes a value fit a table.
func shorten(value json.RawMessage) string {
	const fits = 40
	switch text := []rune(string(value)); {
	case len(text) == 0:
		return "(removed)"
	case len(text) > fits:
		return string(text[:fits-1]) + "…"
	default:
		return string(text)
	}
}
