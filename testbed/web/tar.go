package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// runTar does what kubectl cp asks of tar: "cf - PATH" and "xmf - -C DIR",
// with regular files and directories.
func runTar(args []string) error {
	dir, mode := ".", ""
	var paths []string
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-C" && i+1 < len(args):
			i++
			dir = args[i]
		case i == 0:
			mode = strings.TrimPrefix(a, "-")
		case strings.HasPrefix(a, "-"):
			// "-" is the stream, other options (as --no-same-owner) hold anyway.
		default:
			paths = append(paths, a)
		}
	}
	switch {
	case strings.HasPrefix(mode, "c"):
		return pack(dir, paths, os.Stdout)
	case strings.HasPrefix(mode, "x"):
		return unpack(dir, os.Stdin)
	}
	return fmt.Errorf("tar: cannot do %q", args)
}

func pack(dir string, paths []string, out io.Writer) error {
	w := tar.NewWriter(out)
	for _, path := range paths {
		from := path
		if !filepath.IsAbs(from) {
			from = filepath.Join(dir, path)
		}
		err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
			if err != nil || (!d.IsDir() && !d.Type().IsRegular()) {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			h, err := tar.FileInfoHeader(info, "")
			if err != nil {
				return err
			}
			h.Name = strings.TrimPrefix(file, "/")
			if err := w.WriteHeader(h); err != nil || d.IsDir() {
				return err
			}
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			_, err = io.Copy(w, f)
			return errors.Join(err, f.Close())
		})
		if err != nil {
			return err
		}
	}
	return w.Close()
}

func unpack(dir string, in io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Clean(h.Name), "/")
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = unpackFile(root, name, fs.FileMode(h.Mode).Perm(), r)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
