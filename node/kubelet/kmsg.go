package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ensureKmsg sees to it that path, /dev/kmsg but for tests, can be opened: the
// kubelet reads out-of-memory kills from it and does not start without it. A
// container or a bare chroot may lack it. It returns whether kills will be seen.
func ensureKmsg(path string) (seen bool, err error) {
	if f, err := os.Open(path); err == nil {
		return true, f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("open kernel log: %w; make %s readable", err, path)
	}
	const major, minor = 1, 11
	if unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(major, minor))) == nil {
		if f, err := os.Open(path); err == nil {
			return true, f.Close()
		}
		_ = os.Remove(path)
	}
	// Not allowed to have the device: let the reader find an empty log.
	if err := os.Symlink(os.DevNull, path); err != nil {
		return false, fmt.Errorf("replace missing kernel log: %w", err)
	}
	return false, nil
}
