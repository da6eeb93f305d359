// Command moot-shim is the small second binary of a node: what the container
// runtime executes several times for every pod, kept apart from the daemon
// because a start of the daemon's large binary costs several times as much.
//
// By the name it is started with it is:
//
//   - containerd-shim-runc-v2: the process that stays with a pod's containers,
//     so that they outlive the daemon. One serves all containers of a pod.
//   - moot, or anything when CNI_COMMAND is set: the pod network plugin.
//
// The daemon carries it inside and unpacks it; nobody installs it by hand.
package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin" // the task service: the one plugin a shim needs
	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/mootkube/moot/cmd/moot-shim/cni"
)

func main() {
	if filepath.Base(os.Args[0]) == cni.PluginType || os.Getenv("CNI_COMMAND") != "" {
		// A few milliseconds of work: never worth a collection.
		debug.SetGCPercent(-1)
		os.Exit(cni.Main(os.Getenv))
	}
	// Fewer threads, each with its stack. The library sets a collector target
	// of its own; a memory limit on top, as low as it would need to be, keeps
	// the collector running all the time.
	runtime.GOMAXPROCS(2)
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
