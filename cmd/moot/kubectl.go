package main

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins of other clusters' kubeconfigs
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	"github.com/mootkube/moot/node"
)

func newKubectl() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [ARGS...]",
		Short: "Run the embedded kubectl against this node",
		Long: `Run the embedded kubectl. Without --kubeconfig or KUBECONFIG it uses this
node's own administrator kubeconfig, written by moot up.`,
		Example: `  sudo moot kubectl get nodes
  sudo moot kubectl apply -f app.yaml
  sudo ln -s $(command -v moot) /usr/local/bin/kubectl   # then it is kubectl by name`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Reset() // kubectl knows what to do on Ctrl-C
			if code := runKubectl(args, true); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}

// runKubectl runs kubectl with args and returns its exit status. With own it
// talks to this node unless told otherwise; without, called by the name
// kubectl, a configuration of the user's own goes first.
func runKubectl(args []string, own bool) int {
	if os.Getenv("KUBECONFIG") == "" && !slices.ContainsFunc(args, isKubeconfigFlag) {
		if path := defaultKubeconfig(own); path != "" {
			if err := os.Setenv("KUBECONFIG", path); err != nil {
				fmt.Fprintf(os.Stderr, "moot: set KUBECONFIG: %v\n", err)
				return 1
			}
		}
	}
	// kubectl reads its arguments from os.Args in more than one place (plugins,
	// kuberc, completion), so they are laid as if it had been called itself.
	os.Args = append([]string{"kubectl"}, args...)
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err) // prints as kubectl does, and exits
		return 1
	}
	return 0
}

func isKubeconfigFlag(arg string) bool {
	return arg == "--kubeconfig" || strings.HasPrefix(arg, "--kubeconfig=")
}

// defaultKubeconfig is this node's kubeconfig, or empty when this user cannot
// read it or is to be left with their own.
func defaultKubeconfig(own bool) string {
	if !own {
		if _, err := os.Stat(clientcmd.RecommendedHomeFile); err == nil {
			return ""
		}
	}
	opts := options{Config: node.DefaultConfig()}
	flags := pflag.NewFlagSet("kubectl", pflag.ContinueOnError)
	opts.addFlags(flags)
	if err := opts.load(flags); err != nil {
		fmt.Fprintf(os.Stderr, "moot: %v\n", err)
	}
	path := opts.KubeconfigPath()
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	_ = file.Close()
	return path
}
