package store

import (
	"bytes"
	"context"
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

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mootkube/moot/gossip/crdt"
)

// The file ORIGIN holds the incarnation of the directory, and a fingerprint of
// where it was drawn. A copy of the directory elsewhere, or one put back from a
// backup, has another fingerprint and becomes an incarnation of its own: two
// replicas that issue the same dots would take each other's changes for theirs.
//
// A disk that was put back as a whole, to a snapshot of a virtual machine, or a copy
// that was put back in place, shows no such thing. Its changes would have the dots of
// those that it has lost and that others may have. So when the log and the run file
// differ (Config.RunFile), as after each boot, the first change is of a new
// incarnation, too, unless the others were asked before. Where an incarnation begins
// while the store runs, the log has it, in one batch with its first change.

func originPath(fs vfs.FS, dir string) string { return fs.PathJoin(dir, "ORIGIN") }

// openOrigin reads the incarnation in the file, or draws one at the first start
// and when the directory is a copy.
func openOrigin(cfg Config) (origin crdt.Origin, drawn bool, err error) {
	path := originPath(cfg.FS, cfg.Dir)
	f, err := cfg.FS.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		origin, err = newOriginFile(cfg)
		return origin, true, err
	}
	if err != nil {
		return 0, false, fmt.Errorf("open origin: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, false, fmt.Errorf("read origin %s: %w", path, err)
	}
	fields := strings.Fields(string(b))
	var n uint64
	if len(fields) == 1 || len(fields) == 2 {
		n, err = strconv.ParseUint(fields[0], 16, 64)
	}
	if err != nil || n == 0 || isVolatile(crdt.Origin(n)) {
		return 0, false, fmt.Errorf("read origin %s: %w: it holds no origin: restore it from a backup, or remove the file to begin a new incarnation",
			path, ErrDamaged)
	}
	here := fingerprint(cfg, path)
	if len(fields) == 2 && here != "" && fields[1] != here {
		cfg.Log.Warn("directory is a copy or was moved, a new incarnation begins", "dir", cfg.Dir, "old", crdt.Origin(n))
		origin, err = newOriginFile(cfg)
		return origin, true, err
	}
	return crdt.Origin(n), false, nil
}

// newOriginFile begins a new incarnation.
func newOriginFile(cfg Config) (crdt.Origin, error) {
	origin, path := drawOrigin(), originPath(cfg.FS, cfg.Dir)
	err := writeFile(cfg.FS, cfg.Dir, path, func(tmp string) string {
		return origin.String() + " " + fingerprint(cfg, tmp) + "\n"
	})
	if err != nil {
		return 0, fmt.Errorf("write origin: %w", err)
	}
	return origin, nil
}

// drawOrigin returns a random origin of changes on disk.
func drawOrigin() crdt.Origin {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		if o := crdt.Origin(binary.LittleEndian.Uint64(b[:])) &^ volatileOrigin; o != 0 {
			return o
		}
	}
}

// drawVolatile returns a random origin of changes kept in memory.
func drawVolatile() crdt.Origin { return drawOrigin() | volatileOrigin }

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

// inDoubt reports whether the disk may be an older one than its incarnation has
// had. Drawn says that the incarnation is new.
func (s *Store) inDoubt(drawn bool) (bool, error) {
	if drawn || s.cfg.RunFile == "" {
		return false, nil
	}
	logged, err := getBytes(s.db, runKey)
	if err != nil {
		return false, err
	}
	run, err := os.ReadFile(s.cfg.RunFile)
	return err != nil || !strings.HasPrefix(string(run), bootID()) || !bytes.Equal(run, logged), nil
}

// bootID tells one boot of the machine from another, for a run file on a disk.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) == 0 {
		return rand.Text() // each start may be another boot
	}
	return string(b)
}

// vouch makes the log, with b, and the run file the same. Whichever comes first, a
// crash between leaves them different, and so the next start in doubt. It is done at
// the end of a doubt, and at each start and stop without one, so that a copy of the
// directory from before does not fit.
func (c *committer) vouch(b *pebble.Batch) {
	path := c.store.cfg.RunFile
	if path == "" {
		return
	}
	run := []byte(bootID() + rand.Text())
	c.must(b.Set(runKey, run, nil))
	if err := os.WriteFile(path, run, 0o600); err != nil {
		c.store.cfg.Log.Warn("run file is not written, so the next start is in doubt of the disk", "err", errors.Join(err, os.Remove(path)))
	}
}

// Trust says that this replica includes all that its incarnation has ever written,
// as far as anybody can know, and ends the doubt; see Config.RunFile.
func (s *Store) Trust(ctx context.Context) error {
	return s.submit(ctx, &request{do: func(c *committer, b *batch) error {
		if c.doubt {
			c.doubt = false
			c.vouch(c.disk(b))
		}
		return nil
	}})
}

// renew begins a new incarnation of everything while the store runs.
func (c *committer) renew(b *batch) {
	c.renewDurable(b)
	cl := &c.head.claims
	others := cl.others.Clone()
	others.Note(cl.memory)
	cl.memory, cl.others = crdt.Dot{Origin: drawVolatile()}, others
}

// renewDurable begins a new incarnation of what goes to disk, which nobody doubts.
// What the old one wrote is claimed up to the last that is known of it.
func (c *committer) renewDurable(b *batch) {
	cl := &c.head.claims
	others := cl.others.Clone()
	others.Note(cl.own)
	cl.own, cl.others = crdt.Dot{Origin: drawOrigin()}, others
	c.must(c.disk(b).Set(originKey, encodeOrigin(c.store.base, cl.own.Origin), nil))
	c.doubt = false
	c.vouch(c.disk(b))
}

// encodeOrigin returns the incarnation that followed the one in the file.
func encodeOrigin(base, origin crdt.Origin) []byte {
	b := protowire.AppendFixed64(make([]byte, 0, 16), uint64(base))
	return protowire.AppendFixed64(b, uint64(origin))
}

// readOrigin returns the incarnation that the log says followed the one in the
// file, or that one.
func readOrigin(db *pebble.DB, base crdt.Origin) (crdt.Origin, error) {
	b, err := getBytes(db, originKey)
	if err != nil || b == nil {
		return base, err
	}
	if len(b) != 16 {
		return 0, fmt.Errorf("decode origin: %d bytes, want 16", len(b))
	}
	if crdt.Origin(binary.LittleEndian.Uint64(b)) != base {
		return base, nil // the file is of a copy, or of a backup
	}
	return crdt.Origin(binary.LittleEndian.Uint64(b[8:])), nil
}
