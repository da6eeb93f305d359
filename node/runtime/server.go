package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/cgroups/v3"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/containerd/v2/version"
	"golang.org/x/sys/unix"
)

const (
	snapshotterOverlay = "overlayfs"
	snapshotterNative  = "native"
)

// statsPeriod is how often containerd samples each container's CPU on its own
// account, with a call to its shim. Kubelet reads cgroups itself, so the
// samples serve crictl alone; every second, upstream's default, costs more
// than all the rest of an idle node's runtime.
const statsPeriod = "1m"

// serverConfig is containerd's configuration file, as a value.
func (c *Config) serverConfig(snapshotter string) (*srvconfig.Config, error) {
	limitOOM, err := lacksCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return nil, err
	}
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    c.rootDir(),
		State:   c.runDir(),
		// In the order they depend on each other, so that the error is that of
		// the first that fails.
		RequiredPlugins: []string{
			"io.containerd.content.v1.content",
			"io.containerd.snapshotter.v1." + snapshotter,
			"io.containerd.metadata.v1.bolt",
			"io.containerd.shim.v1.manager",
			"io.containerd.runtime.v2.task",
			"io.containerd.cri.v1.images",
			"io.containerd.cri.v1.runtime",
			"io.containerd.grpc.v1.cri",
			"io.containerd.server.v1.grpc",
			"io.containerd.server.v1.ttrpc",
		},
		// Counters that nobody reads and that cost on every call.
		DisabledPlugins: []string{
			"io.containerd.metrics.v1.grpc-prometheus",
			"io.containerd.metrics.v1.grpc-otel",
		},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":    map[string]any{"address": c.SocketPath()},
			"io.containerd.server.v1.ttrpc":   map[string]any{"address": c.eventSocket()},
			"io.containerd.shim.v1.manager":   map[string]any{"socket_dir": c.shimSocketDir()},
			"io.containerd.cri.v1.images":     c.imageConfig(snapshotter),
			"io.containerd.cri.v1.runtime":    c.criConfig(limitOOM),
			"io.containerd.transfer.v1.local": c.transferConfig(snapshotter),
			// Layers must be on disk before their image is known, or a power
			// cut leaves images with empty files.
			"io.containerd.service.v1.diff-service": map[string]any{"sync_fs": true},
		},
	}, nil
}

func (c *Config) imageConfig(snapshotter string) map[string]any {
	return map[string]any{
		"snapshotter":   snapshotter,
		"pinned_images": map[string]string{"sandbox": c.PauseImage()},
		"registry":      map[string]any{"config_path": strings.Join(c.RegistryDirs, ":")},
		// Only this way of pulling can sync layers to disk.
		"use_local_image_pull":    true,
		"image_pull_with_sync_fs": true,
		"stats_collect_period":    30,
	}
}

func (c *Config) criConfig(limitOOM bool) map[string]any {
	return map[string]any{
		"containerd": map[string]any{
			"default_runtime_name": "runc",
			"runtimes": map[string]any{
				"runc": map[string]any{
					"runtime_type": "io.containerd.runc.v2",
					"sandboxer":    "podsandbox",
					"options": map[string]any{
						"Root":          filepath.Join(c.StateDir, "runc"),
						"SystemdCgroup": c.SystemdCgroup,
					},
				},
			},
		},
		"cni": map[string]any{
			"bin_dirs":     []string{c.CNIBinDir},
			"conf_dir":     c.CNIConfDir,
			"max_conf_num": 1,
			// Saves a process for every pod.
			"use_internal_loopback": true,
		},
		"netns_mounts_under_state_dir": true,
		"restrict_oom_score_adj":       limitOOM,
		"stats_collect_period":         statsPeriod,
		"stats_retention_period":       "2m",
		"enable_criu":                  false,
	}
}

func (c *Config) transferConfig(snapshotter string) map[string]any {
	return map[string]any{
		"config_path": strings.Join(c.RegistryDirs, ":"),
		"unpack_config": []map[string]any{{
			"platform": "linux", "snapshotter": snapshotter, "differ": "walking",
		}},
	}
}

// pickSnapshotter takes overlayfs where the data directory's file system carries
// it. The native one copies every layer and serves anywhere.
func (c *Config) pickSnapshotter() (string, error) {
	if c.Snapshotter != "" {
		return c.Snapshotter, nil
	}
	dir := filepath.Join(c.rootDir(), "io.containerd.snapshotter.v1."+snapshotterOverlay)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create snapshot directory: %w", err)
	}
	if err := overlayutils.Supported(dir); err != nil {
		c.Log.Warn("overlayfs does not work on the data directory: image layers are copied in full", "error", err)
		return snapshotterNative, nil
	}
	return snapshotterOverlay, nil
}

// SystemdCgroups says whether cgroups belong to systemd on this host, so that
// others must ask it for theirs: with systemd as process 1 and cgroup v2 alone.
func SystemdCgroups() bool {
	if cgroups.Mode() != cgroups.Unified {
		return false
	}
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// lacksCapability reads the process' effective capabilities. Without
// CAP_SYS_RESOURCE no process may be protected from the OOM killer more than
// the daemon is, and containers must not ask for it.
func lacksCapability(which int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return data[which/32].Effective&(1<<(which%32)) == 0, nil
}
