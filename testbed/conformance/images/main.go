// Command images makes the container images that upstream's conformance
// suite runs, without a registry: from a Debian file tree and from programs
// built out of upstream's own sources.
//
//	images -base rootfs.tar -bin DIR -src DIR -out images.tar
//	images -serve ADDR -out images.tar
//
// The directory of the first form holds the static programs agnhost,
// busybox, etcd, nnp, pause and sample-apiserver. All images land in one tar,
// under the names the suite asks for and with shared layers, as docker load
// and moot image import take it. The second form is a registry of them.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/kubernetes/test/utils/image"
)

func main() {
	base := flag.String("base", "", "tar of a Debian file tree")
	bin := flag.String("bin", "", "directory of the programs")
	src := flag.String("src", "", "directory of the module k8s.io/kubernetes")
	out := flag.String("out", "", "tar of the images, to write or to serve")
	addr := flag.String("serve", "", "address to serve the images at")
	flag.Parse()
	var err error
	if *addr != "" {
		err = serve(*out, *addr)
	} else {
		err = run(*base, *bin, *src, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(base, bin, src, out string) error {
	debian, err := tarball.LayerFromFile(base, tarball.WithCompressionLevel(1))
	if err != nil {
		return fmt.Errorf("read the file tree: %w", err)
	}
	specs, err := specs(bin, src)
	if err != nil {
		return err
	}
	images := map[name.Tag]v1.Image{}
	for _, s := range specs {
		tag, err := name.NewTag(image.GetE2EImage(s.id))
		if err != nil {
			return fmt.Errorf("name image: %w", err)
		}
		img, err := s.build(debian, tag.TagStr())
		if err != nil {
			return fmt.Errorf("build %s: %w", tag, err)
		}
		images[tag] = img
	}
	if err := tarball.MultiWriteToFile(out, images); err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	return nil
}

// spec describes one image.
type spec struct {
	id         image.ImageID
	debian     bool   // on the Debian file tree, else on nothing
	files      []file // in one layer above
	entrypoint []string
	cmd        []string
	user       string
}

// build assembles the image. The tag goes into its labels, so that no two
// tags share an image: the runtime reports an image by any of its tags.
func (s spec) build(debian v1.Layer, tag string) (v1.Image, error) {
	var layers []v1.Layer
	if s.debian {
		layers = append(layers, debian)
	}
	top, err := layer(s.files)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, append(layers, top)...)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config.Entrypoint = s.entrypoint
	cfg.Config.Cmd = s.cmd
	cfg.Config.User = s.user
	cfg.Config.WorkingDir = "/"
	cfg.Config.Env = []string{"PATH=" + strings.Join([]string{
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
	}, ":")}
	cfg.Config.Labels = map[string]string{"tag": tag}
	return mutate.ConfigFile(img, cfg)
}
