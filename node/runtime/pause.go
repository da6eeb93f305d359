package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	goruntime "runtime"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pinnedLabel keeps an image from kubelet's garbage collection.
const pinnedLabel = "io.cri-containerd.pinned"

// blob is a piece of an image with its description.
type blob struct {
	desc ocispec.Descriptor
	data []byte
}

func newBlob(mediaType string, data []byte) blob {
	return blob{
		desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		data: data,
	}
}

func jsonBlob(mediaType string, v any) (blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return blob{}, fmt.Errorf("encode image: %w", err)
	}
	return newBlob(mediaType, data), nil
}

// pauseArchive is the pause image as an OCI archive, and its digest. The same
// binary gives the same bytes.
func pauseArchive(binary []byte, name string) ([]byte, digest.Digest, error) {
	layerTar, err := tarOf(tarFile{"pause", 0o755, binary})
	if err != nil {
		return nil, "", err
	}
	layer := newBlob(ocispec.MediaTypeImageLayer, layerTar)
	config, err := jsonBlob(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: goruntime.GOARCH},
		Config: ocispec.ImageConfig{
			Entrypoint: []string{"/pause"},
			User:       "65535:65535",
			Env:        []string{"GOMAXPROCS=1"},
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.desc.Digest}},
	})
	if err != nil {
		return nil, "", err
	}
	manifest, err := jsonBlob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config.desc,
		Layers:    []ocispec.Descriptor{layer.desc},
	})
	if err != nil {
		return nil, "", err
	}
	top := manifest.desc
	top.Annotations = map[string]string{images.AnnotationImageName: name}
	index, err := jsonBlob(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []ocispec.Descriptor{top},
	})
	if err != nil {
		return nil, "", err
	}
	layout := fmt.Appendf(nil, `{"imageLayoutVersion":%q}`, ocispec.ImageLayoutVersion)
	files := []tarFile{{ocispec.ImageLayoutFile, 0o644, layout}, {ocispec.ImageIndexFile, 0o644, index.data}}
	for _, b := range []blob{layer, config, manifest} {
		files = append(files, tarFile{"blobs/sha256/" + b.desc.Digest.Encoded(), 0o644, b.data})
	}
	archive, err := tarOf(files...)
	return archive, manifest.desc.Digest, err
}

type tarFile struct {
	name string
	mode int64
	data []byte
}

func tarOf(files ...tarFile) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatPAX,
		})
		if err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return buf.Bytes(), nil
}

// ensurePause makes sure that the pause image of this version is there, whole,
// unpacked and pinned.
func (r *Runtime) ensurePause(ctx context.Context, client *containerd.Client) error {
	packed, err := embeddedFile(pauseAsset)
	if err != nil {
		return err
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("unpack pause binary: %w", err)
	}
	binary, err := io.ReadAll(plain)
	if err != nil {
		return fmt.Errorf("unpack pause binary: %w", err)
	}
	archive, want, err := pauseArchive(binary, r.cfg.PauseImage())
	if err != nil {
		return err
	}
	ok, err := usable(ctx, client, r.cfg.PauseImage(), want, r.snapshotter)
	if err != nil || ok {
		return err
	}
	_, err = importArchive(ctx, client, bytes.NewReader(archive), importOptions{
		snapshotter: r.snapshotter,
		labels:      map[string]string{pinnedLabel: "pinned"},
	})
	if err != nil {
		return fmt.Errorf("import pause image: %w", err)
	}
	return nil
}

// usable says whether an image has the digest and is unpacked.
func usable(ctx context.Context, client *containerd.Client, name string, want digest.Digest, snapshotter string) (bool, error) {
	img, err := client.GetImage(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up image %s: %w", name, err)
	}
	if img.Target().Digest != want {
		return false, nil
	}
	unpacked, err := img.IsUnpacked(ctx, snapshotter)
	if errdefs.IsNotFound(err) {
		return false, nil // its content is gone
	}
	if err != nil {
		return false, fmt.Errorf("look up image %s: %w", name, err)
	}
	return unpacked, nil
}
