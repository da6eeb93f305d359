package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long another holder of a database may take to let go: a
// daemon that was just killed is gone in less.
const lockWait = 2 * time.Second

// checkDatabases opens what containerd will open, to say what is wrong where
// containerd would wait without end or fail in a part that depends on it. An
// empty file is well: containerd starts it anew.
func checkDatabases(root string) error {
	files, err := filepath.Glob(filepath.Join(root, "*", "*.db"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if fi, err := os.Stat(file); err != nil || fi.Size() == 0 {
			continue
		}
		db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockWait})
		if errors.Is(err, bolterrors.ErrTimeout) {
			return fmt.Errorf("open %s: another process uses it: stop the other daemon on this data directory", file)
		}
		if err != nil {
			return fmt.Errorf("open %s: %w: move %s away while no pod runs, and images are loaded again", file, err, root)
		}
		if err := db.Close(); err != nil {
			return fmt.Errorf("close %s: %w", file, err)
		}
	}
	return nil
}
