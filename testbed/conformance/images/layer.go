package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is an entry of a layer: a directory, a symbolic link, a given text or
// a copy of a file on this machine. Mode 0 is 0644.
type file struct {
	path string
	dir  bool
	link string
	text string
	from string
	mode int64
}

// layer packs files, and the directories above them, as root's.
func layer(files []file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	for _, f := range files {
		if err := parents(w, path.Dir(f.path), made); err != nil {
			return nil, err
		}
		if f.dir && made[f.path] {
			continue
		}
		made[f.path] = f.dir
		if err := add(w, f); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithCompressionLevel(1))
}

func parents(w *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := parents(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return add(w, file{path: dir, dir: true, mode: 0o755})
}

func add(w *tar.Writer, f file) error {
	h := tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if f.mode == 0 {
		h.Mode = 0o644
	}
	content := []byte(f.text)
	switch {
	case f.dir:
		h.Typeflag, h.Name = tar.TypeDir, f.path+"/"
	case f.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
	case f.from != "":
		var err error
		if content, err = os.ReadFile(f.from); err != nil {
			return err
		}
	}
	h.Size = int64(len(content))
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
