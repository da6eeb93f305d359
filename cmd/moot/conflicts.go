package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newConflicts() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "List what merges of concurrent changes did not keep",
		Long: `List the fields and objects that lost when changes made on both sides of a cut
were merged, oldest first: the newer write of a field stays, the older of two
objects of one name does, and what was deleted stays deleted. What controllers
observe and write anew, statuses and the pods of Services, is listed with --all
only. -o json has all, and the values that were lost, whole.`,
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
			return printConflicts(os.Stdout, list, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list also what controllers write anew by themselves")
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	addOutputFlag(cmd.Flags(), &output)
	return cmd
}

// printConflicts writes a table, and how many are left out of it.
func printConflicts(out io.Writer, list []node.Conflict, all bool) error {
	shown := slices.DeleteFunc(slices.Clone(list), func(c node.Conflict) bool { return c.Observed && !all })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(shown) > 0 {
		fmt.Fprintln(w, "WRITTEN\tOBJECT\tFIELD\tRULE\tLOST\tKEPT")
	} else {
		fmt.Fprintln(w, "no conflicts")
	}
	for _, c := range shown {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.LostAt.Local().Format(time.DateTime), c.Key, orDash(c.Path), c.Rule, shorten(c.Lost), shorten(c.Kept))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if left := len(list) - len(shown); left > 0 {
		fmt.Fprintf(out, "and %d of what controllers have written anew since (--all lists them)\n", left)
	}
	return nil
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
