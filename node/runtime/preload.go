package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	criruntime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// loadImages brings in what must be there before the first pod: the pause
// image, then the archives of the preload directory. A bad archive is logged
// and left alone.
func (r *Runtime) loadImages(ctx context.Context) error {
	client, err := Connect(r.cfg.SocketPath())
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	ctx = namespaces.WithNamespace(ctx, Namespace)
	if err := ensureNamespace(ctx, client, r.snapshotter); err != nil {
		return err
	}
	if err := r.ensurePause(ctx, client); err != nil {
		return err
	}
	names := append(r.preload(ctx, client), r.cfg.PauseImage())
	if err := awaitImages(ctx, client, names); err != nil {
		return err
	}
	return ctx.Err()
}

// ensureNamespace creates Kubernetes' namespace and notes the snapshotter in
// it, for clients that are told none.
func ensureNamespace(ctx context.Context, client *containerd.Client, snapshotter string) error {
	labels := map[string]string{defaults.DefaultSnapshotterNSLabel: snapshotter}
	err := client.NamespaceService().Create(ctx, Namespace, labels)
	if errdefs.IsAlreadyExists(err) {
		err = client.NamespaceService().SetLabel(ctx, Namespace, defaults.DefaultSnapshotterNSLabel, snapshotter)
	}
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", Namespace, err)
	}
	return nil
}

// awaitImages waits until CRI has noticed images that came by containerd's own
// API, which it does from events. Until then it would try to pull them.
func awaitImages(ctx context.Context, client *containerd.Client, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, ok := client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return fmt.Errorf("wait for images: connection is a %T", client.Conn())
	}
	cri := criruntime.NewImageServiceClient(conn)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for _, name := range names {
		for {
			resp, err := cri.ImageStatus(ctx, &criruntime.ImageStatusRequest{Image: &criruntime.ImageSpec{Image: name}})
			if err == nil && resp.GetImage() != nil {
				break
			}
			select {
			case <-poll.C:
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("wait for image %s: %w", name, ctx.Err()), err)
			}
		}
	}
	return nil
}

// preloaded is what is known of an archive that was imported.
type preloaded struct {
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Names    []string  `json:"names"`
}

// preload imports the archives that are new, changed, or whose images are
// gone. It returns the names of what it imported.
func (r *Runtime) preload(ctx context.Context, client *containerd.Client) []string {
	record := filepath.Join(r.cfg.rootDir(), "preloaded.json")
	known, err := readPreloaded(record)
	if err != nil {
		r.cfg.Log.Warn("preloaded images are imported again", "error", err)
	}
	found := map[string]preloaded{}
	var imported []string
	for path, info := range archivesIn(r.cfg.PreloadDir()) {
		if ctx.Err() != nil {
			return imported
		}
		p := preloaded{Size: info.Size(), Modified: info.ModTime().UTC()}
		old, ok := known[path]
		if ok && old.Size == p.Size && old.Modified.Equal(p.Modified) && haveAll(ctx, client, old.Names) {
			found[path] = old
			continue
		}
		start := time.Now()
		if p.Names, err = importFile(ctx, client, path, nil); err != nil {
			r.cfg.Log.Warn("preload image", "file", path, "error", err)
			continue
		}
		r.cfg.Log.Info("preloaded image", "file", path, "images", p.Names, "took", time.Since(start).Round(time.Millisecond))
		found[path] = p
		imported = append(imported, p.Names...)
	}
	if err := writePreloaded(record, found); err != nil {
		r.cfg.Log.Warn("preloaded images will be imported again", "error", err)
	}
	return imported
}

// archivesIn lists the image archives of a directory; none if it is not there.
func archivesIn(dir string) map[string]fs.FileInfo {
	out := map[string]fs.FileInfo{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return out
	}
	for _, e := range entries {
		name := strings.ToLower(e.Name())
		if !strings.HasSuffix(name, ".tar") && !strings.Contains(name, ".tar.") && !strings.HasSuffix(name, ".tgz") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			out[path] = info
		}
	}
	return out
}

func haveAll(ctx context.Context, client *containerd.Client, names []string) bool {
	for _, name := range names {
		if _, err := client.ImageService().Get(ctx, name); err != nil {
			return false
		}
	}
	return len(names) > 0
}

func readPreloaded(path string) (map[string]preloaded, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of preloaded images: %w", err)
	}
	var known map[string]preloaded
	if err := json.Unmarshal(data, &known); err != nil {
		return nil, fmt.Errorf("read record of preloaded images: %w", err)
	}
	return known, nil
}

func writePreloaded(path string, known map[string]preloaded) error {
	data, err := json.Marshal(known)
	if err != nil {
		return fmt.Errorf("write record of preloaded images: %w", err)
	}
	if old, err := os.ReadFile(path); (err == nil && string(old) == string(data)) || (err != nil && len(known) == 0) {
		return nil
	}
	// A lost or torn record only means another import.
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write record of preloaded images: %w", err)
	}
	return nil
}
