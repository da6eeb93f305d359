package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/node"
	"github.com/mootkube/moot/node/runtime"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Bring and list container images",
		Example: `  sudo moot image import app.tar
  sudo moot image ls`,
	}
	cmd.AddCommand(newImageImport(), newImageList())
	return cmd
}

func newImageImport() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Load image archives for this node's pods",
		Long: `Load images from docker or OCI archives, plain or compressed with gzip or zstd,
so that pods on this node can run them without a registry. Use
imagePullPolicy: IfNotPresent or Never in the pod.`,
		Example: `  docker save app:1 -o app.tar && sudo moot image import app.tar
  sudo moot image import *.tar.gz`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			for _, file := range files {
				names, err := runtime.Import(cmd.Context(), opts.RuntimeSocket(), file, importProgress(file))
				if err != nil {
					return err
				}
				for _, name := range names {
					fmt.Println(name)
				}
			}
			return nil
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	return cmd
}

// importProgress says every two seconds how far an import is.
func importProgress(file string) func(done, total int64) {
	last := time.Now()
	return func(done, total int64) {
		if time.Since(last) < 2*time.Second || total == 0 {
			return
		}
		last = time.Now()
		fmt.Fprintf(os.Stderr, "%s: %d of %d MiB\n", file, done>>20, total>>20)
	}
}

func newImageList() *cobra.Command {
	opts := options{Config: node.DefaultConfig()}
	var output string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the images on this node",
		Example: "  sudo moot image ls\n  sudo moot image ls -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.load(cmd.Flags()); err != nil {
				return err
			}
			images, err := runtime.List(cmd.Context(), opts.RuntimeSocket())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return printJSON(images)
			case "":
				w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE")
				for _, image := range images {
					fmt.Fprintf(w, "%s\t%.19s\t%.1f MiB\n", image.Name, image.Digest, float64(image.Size)/(1<<20))
				}
				return w.Flush()
			default:
				return fmt.Errorf("-o %q: must be json, or left out", output)
			}
		},
	}
	opts.addSomeFlags(cmd.Flags(), "state-dir")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for a machine to read")
	return cmd
}
