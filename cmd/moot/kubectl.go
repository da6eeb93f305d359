package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins of other clusters' kubeconfigs
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
			if code := runKubectl(args); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}

// runKubectl runs kubectl with args and returns its exit status.
func runKubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" && !slices.ContainsFunc(args, isKubeconfigFlag) {
		if path := defaultKubeconfig(); path != "" {
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

// defaultKubeconfig is this node's kubeconfig, or empty when it is absent or
// the user has one of their own at kubectl's usual place.
func defaultKubeconfig() string {
	cfg := node.DefaultConfig()
	path := cfg.KubeconfigPath()
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}
