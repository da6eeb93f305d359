package runtime

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The build puts the helper binaries here, gzipped. A tree without them
// compiles, and says so when a node is started.
//
//go:embed all:embedded
var embedded embed.FS

const (
	shimAsset  = "moot-shim.gz"
	pauseAsset = "pause.gz"

	// shimName is the file name by which containerd finds the shim in PATH.
	shimName = "containerd-shim-runc-v2"
	// pluginName is the file name by which a network configuration finds the
	// network plugin.
	pluginName = "moot"
)

// ErrNoHelpers says that the program was built without its helper binaries.
var ErrNoHelpers = errors.New("built without the helper binaries: run make build")

func embeddedFile(name string) ([]byte, error) {
	data, err := embedded.ReadFile("embedded/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoHelpers
	}
	return data, err
}

// unpackHelper writes the helper binary as <dir>/<content hash>/<shimName> and
// returns that path. A present file is kept: it only gets its name after it is
// complete and on disk.
func unpackHelper(dir string) (string, error) {
	packed, err := embeddedFile(shimAsset)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(packed)
	path := filepath.Join(dir, hex.EncodeToString(sum[:8]), shimName)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return "", fmt.Errorf("unpack helper binary: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("create helper directory: %w", err)
	}
	if err := writeExecutable(path, plain); err != nil {
		return "", fmt.Errorf("unpack helper binary: %w", err)
	}
	return path, nil
}

// writeExecutable replaces path in one step, after its content is on disk.
func writeExecutable(path string, from io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, from)
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// installPlugin puts the helper among the network plugins, under its own name:
// as another link to the file where it can, so that a container that mounts
// only that directory finds it too.
func installPlugin(helper, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create network plugin directory: %w", err)
	}
	path := filepath.Join(dir, pluginName)
	same, err := sameFile(helper, path)
	if err != nil {
		return fmt.Errorf("compare network plugin: %w", err)
	}
	if same {
		return nil
	}
	linked := path + ".new"
	if err := os.Remove(linked); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install network plugin: %w", err)
	}
	if os.Link(helper, linked) == nil {
		if err := os.Rename(linked, path); err != nil {
			return fmt.Errorf("install network plugin: %w", err)
		}
		return nil
	}
	f, err := os.Open(helper)
	if err != nil {
		return fmt.Errorf("install network plugin: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := writeExecutable(path, f); err != nil {
		return fmt.Errorf("install network plugin: %w", err)
	}
	return nil
}

// sameFile compares by identity, then by size and content.
func sameFile(a, b string) (bool, error) {
	ai, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	bi, err := os.Stat(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if os.SameFile(ai, bi) {
		return true, nil
	}
	if ai.Size() != bi.Size() {
		return false, nil
	}
	ah, err := hashFile(a)
	if err != nil {
		return false, err
	}
	bh, err := hashFile(b)
	return ah == bh, err
}

func hashFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// removeUnusedHelpers deletes the versions of the helper beside current that
// no process runs and no container needs to be cleaned up with.
func removeUnusedHelpers(current, runDir, procDir string) error {
	base := filepath.Dir(filepath.Dir(current))
	versions, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("list helper binaries: %w", err)
	}
	if len(versions) < 2 {
		return nil
	}
	used, err := helpersInUse(runDir, procDir)
	if err != nil {
		return err
	}
	used[current] = true
	var errs []error
	for _, v := range versions {
		dir := filepath.Join(base, v.Name())
		if !used[filepath.Join(dir, shimName)] {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// helpersInUse lists what running processes and containers' records name.
func helpersInUse(runDir, procDir string) (map[string]bool, error) {
	used := map[string]bool{}
	exes, err := filepath.Glob(filepath.Join(procDir, "[0-9]*", "exe"))
	if err != nil {
		return nil, err
	}
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil { // it may have ended
			used[target] = true
		}
	}
	records, err := filepath.Glob(filepath.Join(runDir, "io.containerd.runtime.v2.task", "*", "*", "shim-binary-path"))
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		data, err := os.ReadFile(record)
		if err != nil {
			return nil, fmt.Errorf("read shim record: %w", err)
		}
		used[strings.TrimSpace(string(data))] = true
	}
	return used, nil
}
