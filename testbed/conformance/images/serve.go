package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// serve answers as an image registry with the images of a tar, over plain
// HTTP, until it is killed. It says "serving" on standard output once all
// images are there. The node takes it for a mirror of the registries that the
// images' names begin with, so that even pods that always pull get theirs.
func serve(file, addr string) error {
	dir, err := os.MkdirTemp("", "images-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("serve images: %w", err)
	}
	failed := make(chan error, 1)
	go func() {
		failed <- http.Serve(l, registry.New(
			registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
			registry.Logger(log.New(io.Discard, "", 0))))
	}()
	if err := fill(file, l.Addr().String()); err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Println("serving")
	return <-failed
}

// fill puts the images of a tar into the registry at addr.
func fill(file, addr string) error {
	open := func() (io.ReadCloser, error) { return os.Open(file) }
	manifest, err := tarball.LoadManifest(open)
	if err != nil {
		return fmt.Errorf("read images: %w", err)
	}
	for _, m := range manifest {
		for _, t := range m.RepoTags {
			tag, err := name.NewTag(t)
			if err != nil {
				return fmt.Errorf("read images: %w", err)
			}
			img, err := tarball.Image(open, &tag)
			if err != nil {
				return fmt.Errorf("read image %s: %w", t, err)
			}
			to, err := name.NewTag(addr+"/"+tag.RepositoryStr()+":"+tag.TagStr(), name.Insecure)
			if err != nil {
				return fmt.Errorf("serve %s: %w", t, err)
			}
			if err := remote.Write(to, img); err != nil {
				return fmt.Errorf("serve %s: %w", t, err)
			}
		}
	}
	return nil
}
