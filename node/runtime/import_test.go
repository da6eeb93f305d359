package runtime

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

// TestImportFormats imports what docker, podman and skopeo write, and refuses
// what is cut short or nothing of the kind.
func TestImportFormats(t *testing.T) {
	n := inside(t)
	if n == nil {
		return
	}
	ctx := t.Context()
	img := appImage(t)
	tag, err := name.NewTag("example.com/docker:1")
	must(t, err)
	var docker bytes.Buffer
	must(t, tarball.Write(tag, img, &docker))
	files := map[string][]byte{
		"docker.tar":     docker.Bytes(),
		"docker.tar.zst": compressed(t, docker.Bytes()),
		"Shop.tar":       ociArchive(t, img, "v2"),
		"named.tar":      ociArchive(t, img, "example.com/oci:3"),
		"nameless.tar":   ociArchive(t, img, ""),
		"short.tar":      docker.Bytes()[:docker.Len()/2],
		"short.tar.zst":  compressed(t, docker.Bytes())[:docker.Len()/8],
		"text.tar":       []byte("no archive"),
	}
	want := map[string]string{
		"docker.tar":     "example.com/docker:1",
		"docker.tar.zst": "example.com/docker:1",
		"Shop.tar":       "docker.io/library/shop:v2",
		"named.tar":      "example.com/oci:3",
	}
	n.start()
	dir := t.TempDir()
	for _, file := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, file)
		must(t, os.WriteFile(path, files[file], 0o600))
		var done, total int64
		names, err := Import(ctx, n.cfg.SocketPath(), path, func(d, all int64) { done, total = d, all })
		if want[file] == "" {
			if err == nil {
				t.Errorf("%s: imported %q", file, names)
			}
			t.Logf("%s: %v", file, err)
			continue
		}
		if err != nil || !slices.Equal(names, []string{want[file]}) {
			t.Errorf("%s: imported %q, %v, want %s", file, names, err, want[file])
		}
		if done == 0 || total != int64(len(files[file])) {
			t.Errorf("%s: progress ended at %d of %d", file, done, total)
		}
	}
	wantImages(t, n, "docker.io/library/shop:v2", "example.com/docker:1", "example.com/oci:3", n.cfg.PauseImage())
	pod := n.runPod(ctx, "imported")
	id, _ := pod.run(ctx, "docker.io/library/shop:v2", "server")
	n.say(ctx, id, "from a file")
	pod.remove(ctx)
	wantClean(t, n)
}

func compressed(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(data, nil)
}

// ociArchive packs an OCI layout that names its image with the annotation that
// skopeo and podman write.
func ociArchive(t *testing.T, img v1.Image, ref string) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	must(t, err)
	var opts []layout.Option
	if ref != "" {
		opts = append(opts, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref}))
	}
	must(t, path.AppendImage(img, opts...))
	var files []tarFile
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		files = append(files, tarFile{strings.TrimPrefix(p, dir+"/"), 0o644, data})
		return err
	}))
	archive, err := tarOf(files...)
	must(t, err)
	return archive
}
