package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mootkube/moot/gossip/crdt"
)

// The file ORIGIN holds the incarnation of the directory, and a fingerprint of
// where it was drawn. A copy of the directory elsewhere, or one put back from a
// backup, has another fingerprint and becomes an incarnation of its own: two
// replicas that issue the same dots would take each other's changes for theirs.

func originPath(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "ORIGIN") }

// openOrigin reads the incarnation of the directory, or draws one at the first
// start and when the directory is a copy.
func openOrigin(cfg Config) (crdt.Origin, error) {
	path := originPath(cfg.FS, cfg.Dir)
	f, err := cfg.FS.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return newOriginFile(cfg)
	}
	if err != nil {
		return 0, fmt.Errorf("open origin: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("read origin %s: %w", path, err)
	}
	fields := strings.Fields(string(b))
	var n uint64
	if len(fields) == 1 || len(fields) == 2 {
		n, err = strconv.ParseUint(fields[0], 16, 64)
	}
	if err != nil || n == 0 || isVolatile(crdt.Origin(n)) {
		return 0, fmt.Errorf("read origin %s: %w: it holds no origin: restore it from a backup, or remove the file to begin a new incarnation",
			path, ErrDamaged)
	}
	here := fingerprint(cfg, path)
	if len(fields) == 2 && here != "" && fields[1] != here {
		cfg.Log.Warn("directory is a copy or was moved, a new incarnation begins", "dir", cfg.Dir, "old", crdt.Origin(n))
		return newOriginFile(cfg)
	}
	return crdt.Origin(n), nil
}

// newOriginFile begins a new incarnation.
func newOriginFile(cfg Config) (crdt.Origin, error) {
	origin, err := drawOrigin()
	if err != nil {
		return 0, err
	}
	path := originPath(cfg.FS, cfg.Dir)
	err = writeFile(cfg.FS, cfg.Dir, path, func(tmp string) string {
		return origin.String() + " " + fingerprint(cfg, tmp) + "\n"
	})
	if err != nil {
		return 0, fmt.Errorf("write origin: %w", err)
	}
	return origin, nil
}

// drawOrigin returns a random origin of changes on disk.
func drawOrigin() (crdt.Origin, error) {
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, fmt.Errorf("draw origin: %w", err)
		}
		if o := crdt.Origin(binary.LittleEndian.Uint64(b[:])) &^ volatileOrigin; o != 0 {
			return o, nil
		}
	}
}

// machineFiles identify the machine: the first its installation, the second the
// hardware or the virtual machine, which a cloned disk does not take along.
var machineFiles = [...]string{"/etc/machine-id", "/sys/class/dmi/id/product_uuid"}

// fingerprint returns what a copy of the directory does not share, empty when
// nothing is known: Config.Fingerprint, or the machine and the inodes of the
// directory and the origin file.
func fingerprint(cfg Config, path string) string {
	h := sha256.New()
	if cfg.Fingerprint != "" {
		fmt.Fprintln(h, "given", cfg.Fingerprint)
		return hex.EncodeToString(h.Sum(nil)[:16])
	}
	if vfs.Root(cfg.FS) != vfs.Default {
		return ""
	}
	for _, name := range machineFiles {
		b, err := os.ReadFile(name)
		if err != nil {
			b = nil // then it tells nothing
		}
		fmt.Fprintf(h, "%s %q\n", name, b)
	}
	for _, name := range []string{cfg.Dir, path} {
		info, err := os.Stat(name)
		if err != nil {
			return ""
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			fmt.Fprintln(h, st.Ino)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// NewIncarnation makes the next start of the store in dir begin a new
// incarnation. It is for a directory that was put back from a backup, and must
// not be called while the store is open.
func NewIncarnation(fs vfs.FS, dir string) error {
	err := fs.Remove(originPath(fs, dir))
	if err == nil {
		err = syncDir(fs, dir)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("begin new incarnation: %w", err)
	}
	return nil
}

// renew begins a new incarnation while the store runs. What the old one wrote
// is claimed up to the last that is known of it.
func (c *committer) renew() error {
	origin, err := newOriginFile(c.store.cfg)
	if err != nil {
		return err
	}
	cl := &c.head.claims
	others := cl.others.Clone()
	others.Note(cl.own)
	others.Note(cl.memory)
	volatile, err := drawOrigin()
	if err != nil {
		return err
	}
	*cl = claims{own: crdt.Dot{Origin: origin}, memory: crdt.Dot{Origin: volatile | volatileOrigin}, others: others}
	return nil
}
