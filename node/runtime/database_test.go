package runtime

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

func TestCheckDatabases(t *testing.T) {
	root := t.TempDir()
	must(t, checkDatabases(root))
	write(t, filepath.Join(root, "empty", "meta.db"), "")
	good := filepath.Join(root, "good", "meta.db")
	write(t, good, "")
	db, err := bolt.Open(good, 0o600, nil)
	must(t, err)
	if err := checkDatabases(root); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a database in use: %v", err)
	}
	must(t, db.Close())
	must(t, checkDatabases(root))
	write(t, filepath.Join(root, "bad", "meta.db"), strings.Repeat("garbage ", 4096))
	if err := checkDatabases(root); !errors.Is(err, bolterrors.ErrInvalid) || !strings.Contains(err.Error(), "move "+root) {
		t.Errorf("a damaged database: %v", err)
	}
}
