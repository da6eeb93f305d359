package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
)

// Image is one name in the image store.
type Image struct {
	Name    string    `json:"name"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes, as stored compressed
	Pinned  bool      `json:"pinned"`
	Created time.Time `json:"created"` // when it came to this node
}

// Connect opens a client of the runtime at the socket, for Import and List. The
// caller closes it.
func Connect(socket string) (*containerd.Client, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, fmt.Errorf("connect to container runtime: %w; is moot running? start it with: sudo moot up", err)
	}
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(Namespace), containerd.WithTimeout(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("connect to container runtime: %w", err)
	}
	return client, nil
}

// Import loads a docker or OCI image archive, plain or compressed with gzip or
// zstd, for the pods of the node at the socket, and returns the images' names.
// The images can be run when it returns, and survive a power cut. progress, if
// not nil, is told the bytes read so far and in all.
//
// An OCI archive that names its image by a tag alone gets the file's name in
// front.
func Import(ctx context.Context, socket, path string, progress func(done, total int64)) ([]string, error) {
	client, err := Connect(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	names, err := importFile(ctx, client, path, progress)
	if err != nil {
		return nil, err
	}
	return names, awaitImages(ctx, client, names)
}

func importFile(ctx context.Context, client *containerd.Client, path string, progress func(done, total int64)) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	in := io.Reader(f)
	if progress != nil {
		in = &meter{r: f, total: info.Size(), report: progress}
	}
	names, err := importArchive(ctx, client, in, importOptions{tagPrefix: archiveName(path)})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("import %s: it is cut short, or no image archive: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return names, nil
}

// meter reports what is read through it.
type meter struct {
	r           io.Reader
	done, total int64
	report      func(done, total int64)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.report(m.done, m.total)
	return n, err
}

// archiveName is a file's name without what says that it is an archive.
func archiveName(path string) string {
	name := strings.ToLower(filepath.Base(path))
	for _, suffix := range []string{".gz", ".tgz", ".zst", ".tzst", ".tar"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name
}

type importOptions struct {
	snapshotter string            // empty: the namespace's default
	tagPrefix   string            // goes in front of a bare tag
	labels      map[string]string // of the images
}

// importArchive stores and unpacks what an archive holds for this platform.
func importArchive(ctx context.Context, client *containerd.Client, r io.Reader, opts importOptions) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = plain.Close() }()
	imgs, err := client.Import(ctx, plain,
		containerd.WithImageRefTranslator(func(ref string) string { return fullName(ref, opts.tagPrefix) }),
		containerd.WithImageLabels(opts.labels),
		containerd.WithSkipMissing(),
	)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("nothing in it is for %s: %w", platforms.DefaultString(), err)
	}
	if err != nil {
		return nil, err
	}
	if len(imgs) == 0 {
		return nil, errors.New("no image in it has a name: save it with a tag")
	}
	names := make([]string, 0, len(imgs))
	for _, img := range imgs {
		unpack := containerd.WithUnpackApplyOpts(diff.WithSyncFs(true))
		if err := containerd.NewImage(client, img).Unpack(ctx, opts.snapshotter, unpack); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", img.Name, err)
		}
		names = append(names, img.Name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// fullName gives a reference the form that kubelet asks for.
func fullName(ref, tagPrefix string) string {
	if ref == "" {
		return ""
	}
	if !strings.ContainsAny(ref, ":/") && tagPrefix != "" {
		ref = tagPrefix + ":" + ref
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ref
	}
	return named.String()
}

// List returns the images of the node at the socket, by name. Names that only
// repeat a digest are left out.
func List(ctx context.Context, socket string) ([]Image, error) {
	client, err := Connect(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	ctx = namespaces.WithNamespace(ctx, Namespace)
	stored, err := client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	out := make([]Image, 0, len(stored))
	for _, img := range stored {
		if strings.HasPrefix(img.Name, "sha256:") || strings.Contains(img.Name, "@sha256:") {
			continue
		}
		size, err := img.Size(ctx, client.ContentStore(), platforms.Default())
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("size of image %s: %w", img.Name, err)
		}
		out = append(out, newImage(img, size))
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func newImage(img images.Image, size int64) Image {
	return Image{
		Name: img.Name, Digest: img.Target.Digest.String(), Size: size,
		Pinned: img.Labels[pinnedLabel] == "pinned", Created: img.CreatedAt,
	}
}
