package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// instance is the CoreDNS that runs, and the configuration it runs.
type instance struct {
	running     *caddy.Instance
	corefile    string // what runs, rewritten
	lastGood    string // file that keeps it
	doubt       func(netip.Addr) int
	restoreKlog func()
}

func newInstance(stateDir string, doubt func(netip.Addr) int, restoreKlog func()) *instance {
	if restoreKlog == nil {
		restoreKlog = func() {}
	}
	// As soon as the plugin is set up, that is: its start takes a second in which
	// the rest of the process logs too.
	caddy.RegisterParsingCallback("dns", "kubernetes", func(caddy.Context) error {
		restoreKlog()
		return nil
	})
	return &instance{lastGood: filepath.Join(stateDir, "Corefile"), doubt: doubt, restoreKlog: restoreKlog}
}

// load makes CoreDNS run corefile. When that fails, what ran before runs on.
func (i *instance) load(corefile string) (err error) {
	if i.running != nil && corefile == i.corefile {
		return nil
	}
	defer i.restoreKlog()
	defer func() {
		// Parsers of plugins get the user's text.
		if r := recover(); r != nil {
			err = fmt.Errorf("load Corefile: %v", r)
		}
	}()
	if err := registerWary(i.doubt); err != nil {
		return err
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
	var next *caddy.Instance
	if i.running == nil {
		next, err = caddy.Start(input)
	} else {
		next, err = i.running.Restart(input)
	}
	if err != nil {
		return fmt.Errorf("load Corefile: %w", err)
	}
	i.running, i.corefile = next, corefile
	if err := writeFile(i.lastGood, []byte(corefile)); err != nil {
		return fmt.Errorf("keep Corefile: %w", err)
	}
	return nil
}

// loadLastGood makes CoreDNS run what it ran before the daemon restarted.
func (i *instance) loadLastGood() error {
	corefile, err := os.ReadFile(i.lastGood)
	if err != nil {
		return fmt.Errorf("read last Corefile: %w", err)
	}
	return i.load(string(corefile))
}

func (i *instance) stop() error {
	if i.running == nil {
		return nil
	}
	errs := i.running.ShutdownCallbacks()
	errs = append(errs, i.running.Stop())
	i.running = nil
	return errors.Join(errs...)
}
