package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mootkube/moot/testbed"
)

func newImage(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build images and load them onto the nodes"}
	load := &cobra.Command{
		Use:     "load FILE.tar",
		Short:   "Import an image on every node that is on",
		Example: "  sudo testbed image load app.tar",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.LoadImage(cmd.Context(), args[0])
		},
	}
	var spec testbed.ImageSpec
	build := &cobra.Command{
		Use:     "build BINARY FILE.tar",
		Short:   "Make an image of a static binary",
		Example: "  testbed image build --name example.com/app:v1 bin/app app.tar",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			spec.Binary = args[0]
			return testbed.BuildImage(spec, args[1])
		},
	}
	build.Flags().StringVar(&spec.Name, "name", "", "name and tag of the image")
	build.Flags().StringVar(&spec.Path, "path", "", "path of the binary in the image (default: its name, in /)")
	build.Flags().StringSliceVar(&spec.Links, "link", nil, "further paths of the binary in the image")
	build.Flags().StringVar(&spec.User, "user", "", "user to run as")
	if err := build.MarkFlagRequired("name"); err != nil {
		panic(err) // the flag is defined above
	}
	cmd.AddCommand(load, build)
	return cmd
}

func newRegistry(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "registry", Short: "Run image registries beside the nodes"}
	var name string
	up := &cobra.Command{
		Use:   "up",
		Short: "Start a registry with TLS and a password, and print how to reach it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			r, err := c.RegistryUp(cmd.Context(), name)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(os.Stdout)
			enc.SetIndent("", "  ")
			return enc.Encode(r)
		},
	}
	push := &cobra.Command{
		Use:     "push FILE.tar NAME",
		Short:   "Push an image, and print the reference to pull it by",
		Example: "  sudo testbed registry push app.tar shop/app:v1",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			ref, err := c.RegistryPush(cmd.Context(), name, args[0], args[1])
			if err != nil {
				return err
			}
			_, err = fmt.Println(ref)
			return err
		},
	}
	cmd.PersistentFlags().StringVar(&name, "name", "registry", "which registry, when there are several")
	cmd.AddCommand(up, push)
	return cmd
}

func newDemo(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Deploy a small web app, wait until it answers, and print what to try",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.cluster()
			if err != nil {
				return err
			}
			return c.Demo(cmd.Context(), os.Stdout)
		},
	}
}
