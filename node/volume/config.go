package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
)

// Config is what a node's provisioner is told.
type Config struct {
	NodeName   string
	Dir        string // base directory of all volumes of this node
	Kubeconfig string // of a member of pki.GroupVolume, see [Ensure]
	Log        *slog.Logger
}

// DefaultConfig returns a configuration with the usual paths.
func DefaultConfig() Config {
	return Config{Dir: "/var/lib/moot/volumes", Log: slog.Default()}
}

// Validate says what is wrong with the settings, all of it at once.
func (c *Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name: not set"))
	}
	for _, path := range []string{c.Dir, c.Kubeconfig} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("path %q: must be absolute", path))
		}
	}
	if c.Dir == "/" {
		errs = append(errs, errors.New("volume directory /: choose a directory of its own"))
	}
	if c.Log == nil {
		errs = append(errs, errors.New("logger: not set"))
	}
	return errors.Join(errs...)
}
