package testbed

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ImageSpec describes an image around one static binary.
type ImageSpec struct {
	// Name is the reference the image carries in the tar.
	Name string
	// Binary is a static executable on the machine; it becomes the
	// entrypoint, at Path, or at / under its own base name.
	Binary string
	Path   string
	// Links are further paths in the image at which the binary is found, for
	// one that behaves by the name it is called.
	Links []string
	// User to run as, root when empty.
	User string
	// Padding adds a file of that many bytes that do not compress.
	Padding int64
}

// BuildImage writes an image as a tar file that docker load, moot image
// import and RegistryPush take. The same input gives the same image.
func BuildImage(spec ImageSpec, file string) error {
	img, err := spec.image()
	if err != nil {
		return fmt.Errorf("build image %s: %w", spec.Name, err)
	}
	tag, err := name.NewTag(spec.Name)
	if err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return fmt.Errorf("build image %s: %w", spec.Name, err)
	}
	return nil
}

func (spec ImageSpec) image() (v1.Image, error) {
	if err := checkStatic(spec.Binary); err != nil {
		return nil, err
	}
	if spec.Path == "" {
		spec.Path = "/" + filepath.Base(spec.Binary)
	}
	files, err := spec.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files)), nil
	})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config.Entrypoint = []string{spec.Path}
	cfg.Config.Env = []string{"PATH=/bin:/"}
	cfg.Config.User = spec.User
	return mutate.ConfigFile(img, cfg)
}

// checkStatic refuses a binary that would look for a loader or libraries
// that the image has not got.
func checkStatic(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New(file + " is not a static binary: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

func (spec ImageSpec) layer() ([]byte, error) {
	binary, err := os.ReadFile(spec.Binary)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, content []byte) {
		h.ModTime, h.Format, h.Size = time.Unix(0, 0), tar.FormatPAX, int64(len(content))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(content)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/", "var/"} {
		mode := int64(0o755)
		if d == "tmp/" {
			mode = 0o1777
		}
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: mode}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
		[]byte("root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(spec.Path, "/"), Mode: 0o755}, binary)
	for _, l := range spec.Links {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: l, Linkname: spec.Path, Mode: 0o777}, nil)
	}
	if spec.Padding > 0 {
		add(tar.Header{Typeflag: tar.TypeReg, Name: "padding", Mode: 0o644}, noise(spec.Padding))
	}
	if err == nil {
		err = w.Close()
	}
	return buf.Bytes(), err
}

// noise is n bytes that look random and are always the same (xorshift64).
func noise(n int64) []byte {
	b := make([]byte, n)
	x := uint64(0x9e3779b97f4a7c15)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// LoadImage imports a tar file into the image store of every node that is
// on, through moot image import.
func (c *Cluster) LoadImage(ctx context.Context, file string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	var on []string
	for _, n := range s.Nodes {
		if n.Init.alive() {
			on = append(on, n.Name)
			continue
		}
		c.progress("%s is off: not loaded there", n.Name)
	}
	return sideBySide(ctx, on, func(ctx context.Context, name string) error {
		n, err := s.node(name)
		if err == nil {
			err = c.loadOn(ctx, n, file)
		}
		if err != nil {
			return fmt.Errorf("load %s on %s: %w", file, name, err)
		}
		c.progress("%s loaded on %s", filepath.Base(file), name)
		return nil
	})
}

func (c *Cluster) loadOn(ctx context.Context, n *nodeState, file string) error {
	// Onto the node's disk: its /tmp is not the machine's.
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.CreateTemp(c.path("nodes", n.Name, "disk", "tmp"), "image-*.tar")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(to.Name()) }()
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return err
	}
	var out bytes.Buffer
	code, err := c.Exec(ctx, n.Name, Command{
		Argv:   []string{"moot", "image", "import", "/tmp/" + filepath.Base(to.Name())},
		Stdout: &out, Stderr: &out,
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("moot image import: exit status %d: %s", code, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
