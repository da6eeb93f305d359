package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
	"github.com/mootkube/moot/node/join"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke the tokens that machines join with",
		Long: `A token lets a machine become a member of the cluster: it proves the cluster to
the machine and the machine to the cluster. Any member can make one, and any
member can be joined with it. Who has it can become a member, and a member
holds all of the cluster's keys: keep it as a password.`,
		Example: `  sudo moot token create
  sudo moot token list
  sudo moot token revoke 0a1b2c3d4e`,
	}
	cmd.AddCommand(newTokenCreate(), newTokenList(), newTokenRevoke())
	return cmd
}

func newTokenCreate() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var want node.NewToken
	var output string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token and print it",
		Long: `Make a token and print it: the token alone on the standard output, the command
to use it with on the standard error. It is shown this once.`,
		Example: `  sudo moot token create
  sudo moot token create --ttl 1h --description "the new box in the cellar"
  sudo moot token create --ttl 0                 # never expires
  sudo moot token create > token                 # for moot up --token-file`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			made, err := opts.client().CreateToken(cmd.Context(), want)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(made)
			}
			fmt.Println(made.Token)
			fmt.Fprintf(os.Stderr, "\n%s, once. On the machine that is to join:\n\n  sudo moot up --join %s --token %s\n",
				goodUntil(made.TokenInfo), made.Address, made.Token)
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	cmd.Flags().DurationVar(&want.TTL, "ttl", join.DefaultTTL, "how long the token is good for, such as 30m or 72h; 0 for ever")
	cmd.Flags().StringVar(&want.Description, "description", "", "what the token is for, shown by moot token list")
	addOutputFlag(cmd.Flags(), &output)
	return cmd
}

func goodUntil(t join.TokenInfo) string {
	if t.Expires.IsZero() {
		return "It never expires and is shown this"
	}
	return "It is good until " + t.Expires.Local().Format(time.DateTime) + " and is shown this"
}

func newTokenList() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the tokens, without their secrets",
		Example: "  sudo moot token list\n  sudo moot token list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			list, err := opts.client().Tokens(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(list)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tCREATED\tEXPIRES\tUSES\tDESCRIPTION")
			for _, t := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", t.ID, t.Created.Local().Format(time.DateTime), expiry(t, time.Now()), t.Uses, t.Description)
			}
			return w.Flush()
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	addOutputFlag(cmd.Flags(), &output)
	return cmd
}

func expiry(t node.ListedToken, now time.Time) string {
	switch {
	case t.Rotated:
		return "keys were rotated"
	case t.Expires.IsZero():
		return "never"
	case t.Expired(now):
		return "expired"
	default:
		return "in " + t.Expires.Sub(now).Round(time.Second).String()
	}
}

func newTokenRevoke() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "revoke ID...",
		Short: "Make tokens useless",
		Long: `Make tokens useless. A whole token may be given in place of its ID. Machines
that joined with it stay members; moot remove takes one out.`,
		Example: "  sudo moot token revoke 0a1b2c3d4e",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			for _, id := range ids {
				if token, err := join.ParseToken(id); err == nil {
					id = token.ID
				}
				if err := opts.client().RevokeToken(cmd.Context(), id); err != nil {
					return err
				}
				fmt.Printf("revoked %s\n", id)
			}
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	return cmd
}
