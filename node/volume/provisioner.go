package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// Name is how StorageClasses name the provisioner.
const Name = "moot/local-path"

// Provisioner makes and removes the volumes of one node.
type Provisioner struct {
	cfg    Config
	client kubernetes.Interface
}

// New returns a provisioner. It starts nothing.
func New(cfg Config) (*Provisioner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check volume settings: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read volume kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, fmt.Errorf("build volume client: %w", err)
	}
	return &Provisioner{cfg: cfg, client: client}, nil
}

// Run serves claims until ctx ends, and then returns nil.
func (p *Provisioner) Run(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make volume directory: %w", err)
	}
	ctrl := controller.NewProvisionController(ctx, p.client, Name, p,
		controller.LeaderElection(false),
		controller.MetricsPort(0),
		controller.Threadiness(2),
		controller.FailedProvisionThreshold(0),
		controller.FailedDeleteThreshold(0),
		// Making a directory fails for reasons that pass, such as a full disk.
		controller.RateLimiter(workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, time.Minute)),
	)
	ctrl.Run(ctx)
	return nil
}

// ShouldProvision implements [controller.Qualifier]: claims of pods on this node.
func (p *Provisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[selectedNode] == p.cfg.NodeName
}

// ShouldDelete implements [controller.DeletionGuard]: volumes on this node.
func (p *Provisioner) ShouldDelete(_ context.Context, pv *corev1.PersistentVolume) bool {
	return ownVolume(pv, p.cfg.NodeName)
}

// Provision implements [controller.Provisioner]. A directory that is there
// already, from a try that did not get to the end, is taken as it is.
func (p *Provisioner) Provision(_ context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if opts.SelectedNodeName != p.cfg.NodeName {
		return nil, controller.ProvisioningFinished, &controller.IgnoredError{Reason: "the pod is not on node " + p.cfg.NodeName}
	}
	if err := refusal(opts.PVC); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("claim has %w", err)
	}
	name, err := dirName(opts.PVName, opts.PVC)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := makeDir(p.cfg.Dir, name); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("make volume: %w", err)
	}
	p.cfg.Log.Info("volume made", "pv", opts.PVName, "claim", opts.PVC.Namespace+"/"+opts.PVC.Name)
	return buildVolume(opts, p.cfg.NodeName, filepath.Join(p.cfg.Dir, name)), controller.ProvisioningFinished, nil
}

// Delete implements [controller.Provisioner].
func (p *Provisioner) Delete(_ context.Context, pv *corev1.PersistentVolume) error {
	if !ownVolume(pv, p.cfg.NodeName) {
		return &controller.IgnoredError{Reason: "the volume is not on node " + p.cfg.NodeName}
	}
	name, err := dirOf(pv, p.cfg.Dir)
	if err != nil {
		return err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if mounts := mountedUnder(string(mountinfo), filepath.Join(p.cfg.Dir, name)); len(mounts) > 0 {
		return &controller.VolumeInUseError{Reason: fmt.Sprintf("%s is mounted inside the volume", mounts[0])}
	}
	if err := removeDir(p.cfg.Dir, name); err != nil {
		return fmt.Errorf("remove volume: %w", err)
	}
	p.cfg.Log.Info("volume removed", "pv", pv.Name)
	return nil
}

// makeDir makes the directory name below base, open to all users: a pod may run
// as any. Parents outside pods keep it closed.
func makeDir(base, name string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written through it
	if err := root.Mkdir(name, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is there and no directory", name)
	}
	// Mkdir's mode is cut by the umask.
	return root.Chmod(name, 0o777)
}

// removeDir removes the directory name below base and all in it, without
// following symbolic links. That it is gone already is no error.
func removeDir(base, name string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written through it
	return root.RemoveAll(name)
}
