package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
)

func newBackup() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole cluster's state into a file, while it runs",
		Long: `Write one consistent view of everything the cluster keeps on disk, its keys and
its settings into a file that proves itself whole when it is read. Any member
can do it, also one that is cut off. Images and volumes are not in it.

The file holds the cluster's private keys and all Secrets: it is made for its
owner alone, keep it so. An existing file is not replaced.`,
		Example: `  sudo moot backup /srv/backup/moot-$(date +%F)
  sudo moot restore /srv/backup/moot-2026-11-24      # on a machine without a node`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			s, err := opts.client().Backup(cmd.Context(), args[0], writeProgress())
			if err != nil {
				return err
			}
			info, err := os.Stat(args[0])
			if err != nil {
				return fmt.Errorf("look at backup: %w", err)
			}
			fmt.Printf("wrote %d keys, %.1f MiB, as %s (%.1f MiB); it holds the cluster's keys: keep it safe\n",
				s.Keys, float64(s.Bytes)/(1<<20), args[0], float64(info.Size())/(1<<20))
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	return cmd
}

// writeProgress says every two seconds how much was written.
func writeProgress() func(int64) {
	last := time.Now()
	return func(n int64) {
		if time.Since(last) >= 2*time.Second {
			last = time.Now()
			fmt.Fprintf(os.Stderr, "%d MiB written\n", n>>20)
		}
	}
}

func newRestore() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var living, dry bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Begin a new cluster from a backup, or bring one into the running cluster",
		Long: `Begin a new cluster from a backup, in a data directory that holds no node; start
it with moot up afterwards, and join other machines to it. Objects, kubeconfigs
and service account tokens are as they were. Among members it is a new cluster:
machines of the old one do not mix with it, and join again with an empty data
directory.

With --into-living, bring the backup into the cluster that runs here, as new
writes: what is missing is made again, what differs is put back as it was,
nothing is removed. Nodes, endpoints and pods that have a controller belong to
the machines of now and are left alone, as are claims and volumes that are bound
to others by now.

A file that is damaged or cut short is refused before anything is written.`,
		Example: `  sudo moot restore /srv/backup/moot-2026-11-24 && sudo moot up
  sudo moot restore /srv/backup/moot-2026-11-24 --into-living --dry-run
  sudo moot restore /srv/backup/moot-2026-11-24 --into-living`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			if living {
				return opts.client().Restore(cmd.Context(), args[0], dry, func(text string) { fmt.Println(text) })
			}
			if dry {
				return errors.New("--dry-run goes with --into-living")
			}
			if err := opts.completeName(); err != nil {
				return err
			}
			done, err := node.RestoreBackup(cmd.Context(), opts.Config, args[0], say)
			if err != nil {
				return err
			}
			fmt.Printf("restored %d keys of %s, as of %s, into %s; start it with: sudo moot up\n", done.Keys, done.Summary.Header.Node,
				done.Summary.Header.Created.Local().Format(time.DateTime), opts.DataDir)
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "data-dir", "state-dir", "node-name")
	cmd.Flags().BoolVar(&living, "into-living", false, "bring the backup into the cluster that runs here")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "with --into-living: count what would be written, write nothing")
	return cmd
}
