package testbed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Snapshot copies the store of a node that is off, and returns what puts the copy
// back once it is off again, as a hypervisor does that leads a whole disk back:
// files and directories that are still there stay the same ones. The copy is kept
// beside the node's disk.
func (c *Cluster) Snapshot(ctx context.Context, node string) (putBack func(context.Context) error, err error) {
	store, kept := c.File(node, "var/lib/moot/store"), c.path("nodes", node, "snapshot")
	err = c.whileOff(ctx, node, func() error {
		return errors.Join(os.RemoveAll(kept), os.CopyFS(kept, os.DirFS(store)))
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", node, err)
	}
	return func(ctx context.Context) error {
		if err := c.whileOff(ctx, node, func() error { return restoreInPlace(store, kept) }); err != nil {
			return fmt.Errorf("put %s back: %w", node, err)
		}
		return nil
	}, nil
}

func (c *Cluster) whileOff(ctx context.Context, node string, do func() error) error {
	return c.withNode(node, func(_ *state, n *nodeState) error {
		if n.Init.alive() {
			return errors.New("the node runs: crash it first")
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return do()
	})
}

// restoreInPlace gives dir the files that from has.
func restoreInPlace(dir, from string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(from, name)); errors.Is(err, fs.ErrNotExist) {
			return os.Remove(path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dir, name), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), b, 0o600)
	})
}
