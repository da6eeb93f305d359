// Package runtime is the node's container runtime: containerd's server inside
// the daemon, the images it starts from, and the small helper binary it runs.
//
// Data flow: kubelet (or crictl, ctr, nerdctl) speaks CRI and containerd's own
// API over one unix socket; the server keeps content, snapshots and metadata
// under the data directory and running state under the state directory; each
// pod's containers belong to a shim process started from the helper binary,
// which outlives the daemon and is found again by the next one. Images come
// from registries by way of CRI, from Import, and from the archives in the
// preload directory.
//
// Goroutines: Run owns the server's life. containerd's own goroutines live
// until the process ends: since its registries belong to the process, Run is
// called once in one.
//
// It refuses to install signal handlers, to open a TCP port, to load what a
// node does not need (NRI, tracing, metrics, debug, other snapshotters), and
// to touch containers when the daemon stops.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/sirupsen/logrus"
)

// Namespace is the containerd namespace of everything that Kubernetes runs.
const Namespace = "k8s.io"

// ErrNoRunc says that no runc was found in PATH.
var ErrNoRunc = errors.New("runc is not in PATH: install the package runc")

// maxSocketDir is what a shim's socket name leaves of a unix socket path.
const maxSocketDir = 42

// Config says where the runtime keeps things and how it runs containers.
type Config struct {
	// DataDir is the daemon's data directory. The runtime uses containerd/,
	// bin/ and images/ in it.
	DataDir string
	// StateDir is the daemon's state directory, lost at a reboot. Its path is
	// at most 40 bytes, since shims put sockets under it.
	StateDir string
	// Socket is where the API is served; <StateDir>/containerd.sock if empty.
	Socket string
	// Version names the pause image, as moot.local/pause:VERSION.
	Version string
	// Snapshotter is "overlayfs" or "native"; probed if empty.
	Snapshotter string
	// SystemdCgroup asks runc to make cgroups through systemd. Kubelet reads
	// the choice over CRI. See SystemdCgroups.
	SystemdCgroup bool
	// RegistryDirs are searched for <registry>/hosts.toml: mirrors, CA
	// certificates, client certificates.
	RegistryDirs []string
	// CNIConfDir is read for the pod network's configuration.
	CNIConfDir string
	// CNIBinDir is where network plugins are, ours is installed among them.
	CNIBinDir string
	// Log receives containerd's log too: its warnings and errors as they are,
	// its information as debug.
	Log *slog.Logger
}

// DefaultConfig has upstream's paths where other programs rely on them.
func DefaultConfig() Config {
	return Config{
		DataDir:      "/var/lib/moot",
		StateDir:     "/run/moot",
		Version:      "dev",
		RegistryDirs: []string{"/etc/moot/certs.d", "/etc/containerd/certs.d"},
		CNIConfDir:   "/etc/cni/net.d",
		CNIBinDir:    "/opt/cni/bin",
		Log:          slog.New(slog.DiscardHandler),
	}
}

// Validate reports the first thing that is wrong.
func (c *Config) Validate() error {
	for name, dir := range map[string]string{
		"data": c.DataDir, "state": c.StateDir, "CNI configuration": c.CNIConfDir, "CNI plugin": c.CNIBinDir,
	} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("use %s directory %q: not an absolute path", name, dir)
		}
	}
	if n := len(c.shimSocketDir()); n > maxSocketDir {
		return fmt.Errorf("use state directory %s: %d bytes too long for the shims' sockets", c.StateDir, n-maxSocketDir)
	}
	switch c.Snapshotter {
	case "", snapshotterOverlay, snapshotterNative:
	default:
		return fmt.Errorf("use snapshotter %q: not %s or %s", c.Snapshotter, snapshotterOverlay, snapshotterNative)
	}
	if c.Log == nil {
		return errors.New("use configuration: no logger")
	}
	return nil
}

// SocketPath is where the API is served.
func (c *Config) SocketPath() string {
	if c.Socket != "" {
		return c.Socket
	}
	return filepath.Join(c.StateDir, "containerd.sock")
}

// eventSocket is where shims report what happens to containers.
func (c *Config) eventSocket() string { return c.SocketPath() + ".ttrpc" }

// PauseImage is the image of pod sandboxes.
func (c *Config) PauseImage() string { return "moot.local/pause:" + c.Version }

// PreloadDir holds image archives that are imported at start.
func (c *Config) PreloadDir() string { return filepath.Join(c.DataDir, "images") }

func (c *Config) rootDir() string       { return filepath.Join(c.DataDir, "containerd") }
func (c *Config) runDir() string        { return filepath.Join(c.StateDir, "containerd") }
func (c *Config) shimSocketDir() string { return filepath.Join(c.StateDir, "s") }

// Runtime is a containerd server in this process.
type Runtime struct {
	cfg   Config
	ready chan struct{}
	fatal chan error // containerd would have ended the process
	hook  logHook

	snapshotter string // in use; set when the server is built
}

// New checks the configuration and what the host must have. It starts nothing.
func New(cfg Config) (*Runtime, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, ErrNoRunc
	}
	if _, err := embeddedFile(shimAsset); err != nil {
		return nil, err
	}
	return &Runtime{cfg: cfg, ready: make(chan struct{}), fatal: make(chan error, 1)}, nil
}

// Ready is closed when pods can be started: CRI answers, the containers that
// outlived the last daemon are known again, and the pause image and preloaded
// images are there.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// Run serves until ctx is done. Containers and their shims stay when it
// returns. It puts the helper binary's directory first in PATH, where
// containerd looks for shims.
func (r *Runtime) Run(ctx context.Context) error {
	r.adoptLog()
	if err := r.install(); err != nil {
		return err
	}
	srv, err := r.start(ctx)
	if err != nil {
		return err
	}
	defer srv.Stop()
	served := make(chan struct{})
	go func() {
		srv.Wait()
		close(served)
	}()
	select {
	case <-served:
	case err := <-r.fatal:
		return err
	case <-ctx.Done():
		return nil
	}
	if err := r.loadImages(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	close(r.ready)
	select {
	case err := <-r.fatal:
		return err
	case <-ctx.Done():
		return nil
	}
}

// install puts the helper binary where shims and pod networks are started
// from, and drops versions of it that nothing uses any more.
func (r *Runtime) install() error {
	bin, err := unpackHelper(filepath.Join(r.cfg.DataDir, "bin"))
	if err != nil {
		return err
	}
	// A file system that forbids it is better noticed here than by every pod.
	if err := exec.Command(bin, "-v").Run(); err != nil {
		return fmt.Errorf("run %s: %w: is the data directory mounted noexec?", bin, err)
	}
	if err := installPlugin(bin, r.cfg.CNIBinDir); err != nil {
		return err
	}
	if err := os.Setenv("PATH", filepath.Dir(bin)+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("set PATH: %w", err)
	}
	if err := removeUnusedHelpers(bin, r.cfg.runDir(), "/proc"); err != nil {
		r.cfg.Log.Warn("old helper binaries stay", "error", err)
	}
	return nil
}

// start builds the server and opens its sockets. The build cannot be
// interrupted; when ctx ends first it is left to finish by itself.
func (r *Runtime) start(ctx context.Context) (*server.Server, error) {
	var err error
	if r.snapshotter, err = r.cfg.pickSnapshotter(); err != nil {
		return nil, err
	}
	if err := checkDatabases(r.cfg.rootDir()); err != nil {
		return nil, err
	}
	cfg, err := r.cfg.serverConfig(r.snapshotter)
	if err != nil {
		return nil, err
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return nil, fmt.Errorf("create runtime directories: %w", err)
	}
	if err := os.MkdirAll(r.cfg.shimSocketDir(), 0o700); err != nil {
		return nil, fmt.Errorf("create shim socket directory: %w", err)
	}
	r.cleanMounts()

	type built struct {
		srv *server.Server
		err error
	}
	done := make(chan built, 1)
	go func() {
		srv, err := build(ctx, cfg)
		done <- built{srv, err}
	}()
	select {
	case b := <-done:
		if b.err != nil {
			return nil, fmt.Errorf("start containerd: %w", b.err)
		}
		if err := r.open(ctx, b.srv); err != nil {
			b.srv.Stop()
			return nil, err
		}
		r.settleLog()
		return b.srv, nil
	case err := <-r.fatal:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// build makes the server. A damaged database may make it panic.
func build(ctx context.Context, cfg *srvconfig.Config) (srv *server.Server, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return server.New(ctx, cfg)
}

// open serves the API, to root alone.
func (r *Runtime) open(ctx context.Context, srv *server.Server) error {
	if err := srv.Start(ctx); err != nil {
		return fmt.Errorf("serve containerd: %w", err)
	}
	for _, socket := range []string{r.cfg.SocketPath(), r.cfg.eventSocket()} {
		if err := os.Chmod(socket, 0o600); err != nil {
			return fmt.Errorf("protect containerd socket: %w", err)
		}
	}
	return nil
}

// cleanMounts removes the temporary mounts that a crash left.
func (r *Runtime) cleanMounts() {
	if err := mount.SetTempMountLocation(filepath.Join(r.cfg.rootDir(), "tmpmounts")); err != nil {
		r.cfg.Log.Warn("temporary mounts use the system's directory", "error", err)
		return
	}
	warnings, err := mount.CleanupTempMounts(0)
	if err != nil {
		warnings = append(warnings, err)
	}
	for _, w := range warnings {
		r.cfg.Log.Warn("temporary mount stays", "error", w)
	}
}

// adoptLog sends containerd's log to ours. Where containerd would end the
// process, Run returns an error instead.
//
// While the server is built only warnings pass: it would set klog's verbosity,
// which belongs to the daemon, to its own.
func (r *Runtime) adoptLog() {
	std := logrus.StandardLogger()
	std.SetOutput(discard{})
	std.SetFormatter(discard{})
	std.SetLevel(logrus.WarnLevel)
	std.ReplaceHooks(logrus.LevelHooks{})
	r.hook.log = r.cfg.Log.With("component", "containerd")
	r.hook.building.Store(true)
	std.AddHook(&r.hook)
	std.ExitFunc = func(int) {
		select {
		case r.fatal <- errors.New("run containerd: it gave up, its last error is in the log"):
		default:
		}
		goruntime.Goexit()
	}
}

// settleLog lets everything pass that the logger wants.
func (r *Runtime) settleLog() {
	r.hook.building.Store(false)
	if r.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		logrus.SetLevel(logrus.InfoLevel)
	}
}
